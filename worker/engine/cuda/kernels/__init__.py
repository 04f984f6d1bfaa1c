"""Triton kernels of a step; `worker.engine.cuda.torch_ops` says the same in plain PyTorch, and documents it.

What a kernel gives a token does not depend on which other tokens are in the step: what is summed, and in
which order, is a function of the token's own sequence. (Which kernel multiplies depends on how many there are:
`few`, and cuBLAS's choice.)
"""

from worker.engine.cuda.kernels.attention import attend, work_tokens
from worker.engine.cuda.kernels.drawing import draw
from worker.engine.cuda.kernels.layer import add, heads, rms_norm, store, swiglu
from worker.engine.cuda.kernels.products import few, linear

__all__ = [
    "add",
    "attend",
    "draw",
    "few",
    "heads",
    "linear",
    "rms_norm",
    "store",
    "swiglu",
    "work_tokens",
]
