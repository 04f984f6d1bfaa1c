"""How much of a device's memory is left for keys and values."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedConfig

from worker.engine.attention.paged_batch import FlatBatch
from worker.engine.cuda.requirements import DeviceError
from worker.engine.kv.paged_cache import BlockCache, shape_of

#: Of the memory that is left, what keys and values may take: fragments, and libraries that allocate for
#: themselves, need the rest.
SHARE = 0.985
#: Bytes for recorded steps, which have memory of their own and take some for each of their kernels, and for
#: the libraries' workspaces. On an H100, 1.3 GB in all was too little for Mistral-7B's, and 2.5 GB sufficed.
RESERVE = 3 * 2**29
#: Candidates of a draw.
MOST_CANDIDATES = 64


def bytes_per_token(config: PreTrainedConfig, dtype: torch.dtype) -> int:
    """Return what the keys and values of one token take in all layers."""
    heads, size = shape_of(config)
    return int(2 * config.num_hidden_layers * heads * size * dtype.itemsize)


def free(device: torch.device) -> int:
    """Return how many bytes this process may still allocate on a CUDA device."""
    torch.cuda.empty_cache()
    available, total = torch.cuda.mem_get_info(device)
    allowed = int(total * torch.cuda.get_per_process_memory_fraction(device))
    # What PyTorch holds and does not use is as good as free.
    held = torch.cuda.memory_reserved(device)
    unused = held - torch.cuda.memory_allocated(device)
    return max(0, min(available, allowed - held) + unused)


def working(
    compute: Any,
    ops: Any,
    config: PreTrainedConfig,
    dtype: torch.dtype,
    device: torch.device,
    chunk: int,
    slots: int,
) -> int:
    """Return how many bytes the largest step needs beside weights, keys and values.

    It is tried: a step of nothing but tokens that belong to nobody.

    Args:
        compute: scores a batch.
        ops: draws.
        config: the model's.
        dtype: of its weights.
        device: where they are.
        chunk: the most prompt tokens of a step.
        slots: the most sequences.
    """
    cache = BlockCache(config, blocks=2, dtype=dtype, device=device)
    count = chunk + slots
    nothing = torch.full((count,), -1, dtype=torch.int32, device=device)
    zeros = torch.zeros((count, 4), dtype=torch.int32, device=device)
    batch = FlatBatch(
        ids=zeros[:, 0].long(),
        adapters=nothing,
        rows=zeros[:, 0].contiguous(),
        positions=nothing,
        tables=zeros,
        decoding=slots,
        reach=1,
        work=zeros[:1],
    )
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    with torch.inference_mode():
        logits = compute(batch, cache, torch.arange(slots, device=device))
        drawn = ops.draw(
            logits,
            zeros[:slots, 0].float(),
            zeros[:slots, 0].long() + 1,
            zeros[:slots, 0].long(),
            MOST_CANDIDATES,
        )
    del logits, drawn
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def blocks_that_fit(
    config: PreTrainedConfig,
    dtype: torch.dtype,
    device: torch.device,
    *,
    block_size: int,
    context: int,
    working: int,
) -> int:
    """Return how many blocks of keys and values fit a CUDA device.

    Args:
        config: the model's.
        dtype: of keys and values.
        device: where the weights are already.
        block_size: tokens of a block.
        context: the most tokens of a sequence.
        working: bytes that a step needs for itself.

    Raises:
        DeviceError: one sequence of so many tokens does not fit.
    """
    each = bytes_per_token(config, dtype) * block_size
    left = free(device)
    found = max(0, int((left - working - RESERVE) * SHARE)) // each
    needed = -(-context // block_size) + 1
    if found < needed:
        raise DeviceError(
            f"a context of {context} tokens needs {needed * each / 1e9:.1f} GB for its keys and "
            f"values, and {left / 1e9:.1f} GB are free; set HELIXQ_MAX_CONTEXT lower"
        )
    return found
