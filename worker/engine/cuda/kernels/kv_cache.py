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
        block = block.to(tl.int64)
        columns = tl.arange(0, BLOCK)
        mask = columns < HEAD_SIZE
        offsets = (token * NUM_KV_HEADS + head) * HEAD_SIZE + columns
        slot = (block * NUM_KV_HEADS + head) * BLOCK_SIZE + position % BLOCK_SIZE
        slot = slot * HEAD_SIZE + columns
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
        num_kv_heads, head_size, cache.block_size, triton.next_power_of_2(head_size),
        num_warps=1,
        **FUSED_MULTIPLY_ADD,
    )  # fmt: skip
