# ruff: noqa: N803  (Triton writes compile-time constants in capitals)
"""Stores keys and values in a paged KV cache."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from worker.engine.attention.paged_batch import PagedBatch
from worker.engine.cuda.kernels.common import FUSED_MULTIPLY_ADD, launch
from worker.engine.kv.paged_cache import PagedKVCache


@triton.jit
def offset_of(
    block,
    kv_head,
    position,
    NUM_KV_HEADS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
):
    """Return where the keys or values of a head at a position begin in the layer's pages, in elements.

    ``block`` has the position. A cache may have more than 2**31 elements.
    """
    slot = (block.to(tl.int64) * NUM_KV_HEADS + kv_head) * BLOCK_SIZE + position % BLOCK_SIZE
    return slot * HEAD_SIZE


@triton.jit
def _reshape_and_cache_kernel(
    key,
    value,
    rows,
    positions,
    keys,
    values,
    block_tables,
    block_tables_stride,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    position = tl.load(positions + token)
    if position >= 0:  # not padding
        row = tl.load(rows + token)
        block = tl.load(block_tables + row * block_tables_stride + position // BLOCK_SIZE)
        columns = tl.arange(0, BLOCK)
        mask = columns < HEAD_SIZE
        offsets = (token * NUM_KV_HEADS + head) * HEAD_SIZE + columns
        slot = offset_of(block, head, position, NUM_KV_HEADS, BLOCK_SIZE, HEAD_SIZE) + columns
        tl.store(keys + slot, tl.load(key + offsets, mask=mask), mask=mask)
        tl.store(values + slot, tl.load(value + offsets, mask=mask), mask=mask)


def reshape_and_cache(
    key: Tensor, value: Tensor, batch: PagedBatch, cache: PagedKVCache, layer: int
) -> None:
    num_tokens, num_kv_heads, head_size = key.shape
    launch(
        _reshape_and_cache_kernel, (num_tokens, num_kv_heads),
        key, value, batch.rows, batch.positions, cache.keys[layer], cache.values[layer],
        batch.block_tables, batch.block_tables.stride(0),
        NUM_KV_HEADS=num_kv_heads, HEAD_SIZE=head_size, BLOCK_SIZE=cache.block_size,
        BLOCK=triton.next_power_of_2(head_size), num_warps=1, **FUSED_MULTIPLY_ADD,
    )  # fmt: skip
