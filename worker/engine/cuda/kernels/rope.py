# ruff: noqa: N803, N806  (Triton writes compile-time constants in capitals)
"""Queries, keys and values with their adapters: rotates queries and keys, and stores keys and values in a paged KV cache."""

from __future__ import annotations

import math

import triton
import triton.language as tl
from torch import Tensor

from worker.engine.attention.paged_batch import PagedBatch
from worker.engine.cuda.kernels.common import (
    grid_dependency,
    input_precision,
    launch,
    launch_options,
)
from worker.engine.cuda.kernels.kv_cache import offset_of
from worker.engine.cuda.kernels.lora import (
    TileSizes,
    adapter_range,
    load_a_output,
    load_b,
    load_entry,
    load_sum,
    parts_of,
    tile_size,
)
from worker.engine.cuda.lora_weights import LoRABWeights
from worker.engine.kv.paged_cache import PagedKVCache

TILE_SIZES: TileSizes = ((16, 16, 0, 4), (512, 32, 0, 4), (math.inf, 64, 0, 4))


@triton.jit
def _place_of_head(
    head, NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr, HEAD_SIZE: tl.constexpr
):
    """Return the projection of a head, 0 for queries, 1 for keys, 2 for values, and the head's first column there."""
    projection = (head >= NUM_HEADS).to(tl.int32) + (head >= NUM_HEADS + NUM_KV_HEADS).to(tl.int32)
    column = (head - (head >= NUM_HEADS).to(tl.int32) * NUM_HEADS) * HEAD_SIZE
    column = tl.where(head >= NUM_HEADS + NUM_KV_HEADS, column - NUM_KV_HEADS * HEAD_SIZE, column)
    return projection, column


@triton.jit(do_not_specialize=["num_tokens"])  # one variant for all numbers
def _rope_and_cache_kernel(
    # As in `kernels.lora`, for queries, keys and values side by side.
    product,
    product_stride,
    lora_a_output,
    lora_a_stride,
    part_stride,
    b,
    table,
    adapter_ids,
    # As in `PagedBatch`.
    rows,
    positions,
    # (positions, half of a head).
    cos,
    sin,
    # What is written: (tokens, heads, head size), and the layer's pages.
    queries,
    keys,
    values,
    block_tables,
    block_tables_stride,
    num_tokens,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    NUM_ADAPTERS: tl.constexpr,
    NUM_PARTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
    PRECISION: tl.constexpr,
    PDL: tl.constexpr,
):
    """One head of a tile of tokens. Its two halves are rotated into each other."""
    head = tl.program_id(0)
    tokens = (tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    token_mask = tokens < num_tokens
    HALF: tl.constexpr = HEAD_SIZE // 2
    columns = tl.arange(0, BLOCK_N)
    column_mask = columns < HALF
    mask = token_mask[:, None] & column_mask[None, :]
    offsets = tokens[:, None] * product_stride + head * HEAD_SIZE + columns[None, :]
    ids = tl.load(adapter_ids + tokens, mask=token_mask, other=-1)
    position = tl.load(positions + tokens, mask=token_mask, other=-1)
    projection, column = _place_of_head(head, NUM_HEADS, NUM_KV_HEADS, HEAD_SIZE)
    grid_dependency(PDL)
    first = load_sum(product, offsets, part_stride, mask, NUM_PARTS)
    second = load_sum(product, HALF + offsets, part_stride, mask, NUM_PARTS)
    lora_first = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    lora_second = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    first_adapter, last_adapter = adapter_range(ids, NUM_ADAPTERS)
    for adapter in range(first_adapter, last_adapter + 1):
        is_adapter = ids == adapter
        entry = table + (projection * NUM_ADAPTERS + adapter) * 4
        start, rank, offset = load_entry(entry)
        stride = tl.where(projection == 0, NUM_HEADS * HEAD_SIZE, NUM_KV_HEADS * HEAD_SIZE)
        for r in range(0, rank, BLOCK_R):
            a_output = load_a_output(
                lora_a_output, lora_a_stride, part_stride, start, rank, r, tokens, is_adapter,
                NUM_PARTS, BLOCK_R,
            )  # fmt: skip
            b_first = load_b(b, offset, stride, rank, r, column + columns, column_mask, BLOCK_R)
            b_second = load_b(
                b, offset, stride, rank, r, column + HALF + columns, column_mask, BLOCK_R
            )  # fmt: skip
            a_output = a_output.to(b_first.dtype)
            lora_first = tl.dot(a_output, b_first, lora_first, input_precision=PRECISION)
            lora_second = tl.dot(a_output, b_second, lora_second, input_precision=PRECISION)
    first += lora_first
    second += lora_second
    # Rounded, as the outputs of projections are.
    first = first.to(queries.dtype.element_ty).to(tl.float32)
    second = second.to(queries.dtype.element_ty).to(tl.float32)
    is_token = position >= 0  # not padding
    if head < NUM_HEADS + NUM_KV_HEADS:  # a value is not rotated
        angle = position[:, None] * HALF + columns[None, :]
        cache_mask = is_token[:, None] & column_mask[None, :]
        c = tl.load(cos + angle, mask=cache_mask, other=1.0)
        s = tl.load(sin + angle, mask=cache_mask, other=0.0)
        rotated = first * c - second * s
        second = second * c + first * s
        first = rotated
    if head < NUM_HEADS:
        slot = (tokens[:, None] * NUM_HEADS + head) * HEAD_SIZE + columns[None, :]
        tl.store(queries + slot, first, mask=mask)
        tl.store(queries + HALF + slot, second, mask=mask)
    else:
        row = tl.load(rows + tokens, mask=token_mask, other=0)
        block = tl.load(
            block_tables + row * block_tables_stride + position // BLOCK_SIZE,
            mask=is_token,
            other=0,
        )
        kv_head = (head - NUM_HEADS) % NUM_KV_HEADS
        slot = offset_of(block, kv_head, position, NUM_KV_HEADS, BLOCK_SIZE, HEAD_SIZE)
        slot = slot[:, None] + columns[None, :]
        cache_mask = is_token[:, None] & column_mask[None, :]
        if head < NUM_HEADS + NUM_KV_HEADS:
            tl.store(keys + slot, first, mask=cache_mask)
            tl.store(keys + HALF + slot, second, mask=cache_mask)
        else:
            tl.store(values + slot, first, mask=cache_mask)
            tl.store(values + HALF + slot, second, mask=cache_mask)


def rope_and_cache(
    product: Tensor,
    lora_a_output: Tensor,
    lora_b: LoRABWeights,
    batch: PagedBatch,
    cos: Tensor,
    sin: Tensor,
    cache: PagedKVCache,
    layer: int,
) -> Tensor:
    num_tokens, num_kv_heads, head_size = product.shape[-2], cache.num_kv_heads, cache.head_size
    num_heads = lora_b.out_features // head_size - 2 * num_kv_heads
    num_parts, part_stride = parts_of(product)
    queries = lora_b.b.new_empty(num_tokens, num_heads, head_size)
    block_m, _, warps = tile_size(TILE_SIZES, num_tokens)
    grid = (num_heads + 2 * num_kv_heads, triton.cdiv(num_tokens, block_m))
    launch(
        _rope_and_cache_kernel, grid,
        product, product.stride(-2), lora_a_output, lora_a_output.stride(-2), part_stride,
        lora_b.b, lora_b.table, batch.adapter_ids, batch.rows, batch.positions, cos, sin, queries,
        cache.keys[layer], cache.values[layer],
        batch.block_tables, batch.block_tables.stride(0), num_tokens,
        NUM_HEADS=num_heads, NUM_KV_HEADS=num_kv_heads, HEAD_SIZE=head_size,
        BLOCK_SIZE=cache.block_size, NUM_ADAPTERS=lora_b.num_adapters, NUM_PARTS=num_parts,
        BLOCK_M=block_m, BLOCK_N=max(16, triton.next_power_of_2(head_size // 2)),
        BLOCK_R=lora_b.block_rank, PRECISION=input_precision(queries),
        num_warps=warps, num_stages=1, **launch_options(queries),
    )  # fmt: skip
    return queries
