"""How many blocks of keys and values fit a CUDA device."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedConfig

from worker.engine.attention.paged_batch import PagedBatch
from worker.engine.cuda.requirements import DeviceError
from worker.engine.kv.paged_cache import PagedKVCache
from worker.engine.kv.shape import kv_bytes_per_token

#: Share of the remaining memory that the KV cache takes: fragmentation, and libraries that allocate for
#: themselves, need the rest.
UTILIZATION = 0.99
#: Bytes for CUDA graphs, which take some for each of their kernels, and for the libraries' workspaces. On an H100,
#: Mistral-7B's 65 graphs and its activations of 0.3 GB had enough with 1.3 GB, and too little with 1.0: computed from runs
#: in which gaps of 1.4 GB between tensors counted as free.
RESERVED_BYTES = 10 * 2**27
#: Candidates of each sampled token in the profile run.
PROFILE_TOP_K = 64


def free_bytes(device: torch.device) -> int:
    """Return how many bytes this process can still allocate on a CUDA device.

    Gaps between tensors do not count. They are too small for a layer's keys or values.
    """
    torch.cuda.empty_cache()
    available, total = torch.cuda.mem_get_info(device)
    allowed = int(total * torch.cuda.get_per_process_memory_fraction(device))
    return max(0, min(available, allowed - torch.cuda.memory_reserved(device)))


def profile_run(
    model: Any,
    ops: Any,
    config: PreTrainedConfig,
    dtype: torch.dtype,
    device: torch.device,
    *,
    max_num_batched_tokens: int,
    max_num_seqs: int,
    tile_tokens: int,
) -> int:
    """Run the largest step on padding tokens; return its peak of bytes beside weights and KV cache.

    Args:
        model: computes a batch's logits, as `worker.engine.models.paged_llama.PagedLlama`.
        ops: `worker.engine.cuda.kernels` or `worker.engine.cuda.torch_ops`.
        config: the model's.
        dtype: of the weights.
        device: where they are.
        max_num_batched_tokens: maximum number of prefill tokens.
        max_num_seqs: maximum number of sequences.
        tile_tokens: maximum number of tokens of a prefill tile: the kernels are those of the engine's steps.
    """
    cache = PagedKVCache(config, num_blocks=2, dtype=dtype, device=device)
    num_tokens = max_num_batched_tokens + max_num_seqs
    padding = torch.full((num_tokens,), -1, dtype=torch.int32, device=device)
    # As many columns as make rows aligned, like those of the engine's block tables: the same kernels.
    zeros = torch.zeros((num_tokens, 16), dtype=torch.int32, device=device)
    batch = PagedBatch(
        input_ids=zeros[:, 0].long(),
        adapter_ids=padding,
        rows=zeros[:, 0].contiguous(),
        positions=padding,
        block_tables=zeros,
        num_decode_tokens=max_num_seqs,
        max_kv_len=1,
        prefill_tiles=zeros[:1, :4].contiguous(),
        tile_tokens=tile_tokens,
    )
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    with torch.inference_mode():
        logits = model(batch, cache, torch.arange(max_num_seqs, device=device))
        sampled = ops.sample(
            logits,
            zeros[:max_num_seqs, 0].float(),
            zeros[:max_num_seqs, 0].long() + 1,
            zeros[:max_num_seqs, 0].long(),
            PROFILE_TOP_K,
        )
    del logits, sampled
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def num_blocks_that_fit(
    config: PreTrainedConfig,
    dtype: torch.dtype,
    device: torch.device,
    *,
    block_size: int,
    max_model_len: int,
    max_num_tokens: int,
    activation_bytes: int,
    cuda_graphs: bool,
) -> int:
    """Return how many blocks of keys and values fit a CUDA device, or how many are wanted if those are fewer.

    Args:
        config: the model's.
        dtype: of keys and values.
        device: where the weights are already.
        block_size: tokens of a block.
        max_model_len: maximum number of tokens of a sequence.
        max_num_tokens: the number of tokens that are wanted.
        activation_bytes: what a step needs for itself, as `profile_run` returns it.
        cuda_graphs: whether steps are captured. Graphs have memory of their own for it, beside that of steps that fit
            none of them.

    Raises:
        DeviceError: one sequence of ``max_model_len`` tokens does not fit.
    """
    block_bytes = kv_bytes_per_token(config, dtype) * block_size
    free = free_bytes(device)
    room = free - activation_bytes * (1 + cuda_graphs) - RESERVED_BYTES
    fitting = max(0, int(room * UTILIZATION)) // block_bytes
    needed = -(-max_model_len // block_size) + 1
    if fitting < needed:
        raise DeviceError(
            f"a context of {max_model_len} tokens needs {needed * block_bytes / 1e9:.1f} GB for its "
            f"keys and values, and {free / 1e9:.1f} GB are free; set HELIXQ_MAX_CONTEXT lower"
        )
    return min(fitting, -(-max_num_tokens // block_size) + 1)
