"""Triton kernels of a step. `worker.engine.cuda.torch_ops` has the same operations in PyTorch, documented.

A token's result does not depend on the other tokens of the step: what is summed, and in which order, is a
function of the token's own sequence. (Which kernel multiplies depends on the number of tokens:
`use_small_batch_linear`, and cuBLAS's choice.)
"""

from worker.engine.cuda.kernels.activation import silu_and_mul
from worker.engine.cuda.kernels.attention import paged_attention, prefill_tile_tokens
from worker.engine.cuda.kernels.kv_cache import reshape_and_cache
from worker.engine.cuda.kernels.linear import small_batch_linear, use_small_batch_linear
from worker.engine.cuda.kernels.norm import rms_norm
from worker.engine.cuda.kernels.residual import add_residual
from worker.engine.cuda.kernels.rope import rope_and_cache
from worker.engine.cuda.kernels.sampling import sample

__all__ = [
    "add_residual",
    "paged_attention",
    "prefill_tile_tokens",
    "reshape_and_cache",
    "rms_norm",
    "rope_and_cache",
    "sample",
    "silu_and_mul",
    "small_batch_linear",
    "use_small_batch_linear",
]
