# ruff: noqa: N803, N806  (Triton writes compile-time constants in capitals)
"""Attention over a paged KV cache, of decoding tokens and of prefill tiles.

Attention of one token over many keys is split at positions that depend on the number of keys alone
(Flash-Decoding, Dao et al., 2023), over blocks that need not be adjacent (PagedAttention, Kwon et al., SOSP
2023), with a running maximum (FlashAttention, Dao et al., NeurIPS 2022).
"""

from __future__ import annotations

from typing import Any

import torch
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
from worker.engine.kv.paged_cache import PagedKVCache

#: Keys of a split of a decoding token's attention, and the maximum number of splits. Beyond their
#: product, splits get longer.
SPLIT_KEYS, MAX_SPLITS = 256, 16
#: Keys of a loop iteration, warps and stages, for decoding tokens and for prefill tiles.
DECODE_CONFIG = (32, 4, 4)
PREFILL_CONFIG = (64, 4, 3)
LOG2E = 1.4426950408889634


@triton.jit
def _first_key(position, window, HAS_WINDOW: tl.constexpr, ALIGNMENT: tl.constexpr):
    """Return the first key to read for a query: that of its window, rounded down to a multiple."""
    first = 0
    if HAS_WINDOW:
        first = tl.maximum(position - window + 1, 0) // ALIGNMENT * ALIGNMENT
    return first


@triton.jit
def _keys_per_split(num_keys, SPLIT_KEYS: tl.constexpr, MAX_SPLITS: tl.constexpr):
    return tl.cdiv(num_keys, SPLIT_KEYS * MAX_SPLITS) * SPLIT_KEYS


@triton.jit
def _attention_kernel(
    # (tokens, heads, head size).
    queries,
    # The layer's pages.
    keys,
    values,
    # Of decoding tokens: (tokens, heads, MAX_SPLITS, head size), not divided by the sums, and each split's maximum score
    # and sum. Of prefill tiles: as the queries; there are no statistics.
    out,
    split_stats,
    # As in `PagedBatch`.
    block_tables,
    block_tables_stride,
    rows,
    positions,
    prefill_tiles,
    # Of scores whose exponentials have base 2.
    scaling,
    window,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
    SPLIT_KEYS: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    SPLIT_BLOCKS: tl.constexpr,
    PRECISION: tl.constexpr,
    PDL: tl.constexpr,
):
    """Attend with the queries of successive tokens of one sequence that share a key-value head.

    With ``MAX_SPLITS`` == 1, a program computes a prefill tile over all of its keys. Else it computes one
    token over one split of its keys, and stores the split's maximum and sum.
    """
    item = tl.program_id(0)
    kv_head = tl.program_id(1)
    GROUP_SIZE: tl.constexpr = NUM_HEADS // NUM_KV_HEADS
    if MAX_SPLITS == 1:
        first_token = tl.load(prefill_tiles + item * 4)
        num_tokens = tl.load(prefill_tiles + item * 4 + 1)
        row = tl.load(prefill_tiles + item * 4 + 2)
        position = tl.load(prefill_tiles + item * 4 + 3)
    else:
        first_token = item
        num_tokens = 1
        row = tl.load(rows + item)
        position = tl.load(positions + item)
    # Keys `start … end - 1`.
    end = position + num_tokens
    start = _first_key(position, window, HAS_WINDOW, ALIGNMENT)
    if MAX_SPLITS > 1:
        split = tl.program_id(2)
        split_keys = _keys_per_split(tl.maximum(end - start, 1), SPLIT_KEYS, MAX_SPLITS)
        start = start + split * split_keys
        end = tl.minimum(start + split_keys, end)
    block_table = block_tables + row.to(tl.int64) * block_tables_stride
    if SPLIT_BLOCKS:
        # All blocks of the split at once: with a dependent load in the loop, the pipeline is only one
        # iteration ahead.
        split_block = tl.arange(0, SPLIT_BLOCKS)
        table_index = start // BLOCK_SIZE + split_block
        block_ids = tl.load(block_table + table_index, mask=table_index * BLOCK_SIZE < end, other=0)
    # The kernel before this one writes queries, keys and values. What is loaded above is older.
    grid_dependency(PDL)
    if MAX_SPLITS > 1:  # noqa: SIM102 (Triton leaves the branch out of the other variant)
        if start >= end or position < 0:
            return
    query = tl.arange(0, BLOCK_M)
    token = query // GROUP_SIZE
    head = kv_head * GROUP_SIZE + query % GROUP_SIZE
    query_mask = token < num_tokens
    columns = tl.arange(0, BLOCK_D)
    column_mask = columns < HEAD_SIZE
    offsets = ((first_token + token).to(tl.int64) * NUM_HEADS + head) * HEAD_SIZE
    q = tl.load(
        queries + offsets[:, None] + columns[None, :],
        mask=query_mask[:, None] & column_mask[None, :],
        other=0.0,
    )
    query_position = position + token
    # Of the keys so far: the maximum score, the sum of the exponentials, and the sum of the values that they weight.
    m_i = tl.full([BLOCK_M], float("-inf"), tl.float32)
    l_i = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for n in range(start, end, BLOCK_N):
        key_position = n + tl.arange(0, BLOCK_N)
        key_mask = key_position < end
        if SPLIT_BLOCKS:
            is_block = split_block == (n - start) // BLOCK_SIZE
            block = tl.sum(tl.where(is_block, block_ids, 0), 0)
            first_slot = offset_of(block, kv_head, n, NUM_KV_HEADS, BLOCK_SIZE, HEAD_SIZE)
            slots = first_slot + tl.arange(0, BLOCK_N) * HEAD_SIZE
        elif BLOCK_SIZE % BLOCK_N == 0:
            block = tl.load(block_table + n // BLOCK_SIZE)
            first_slot = offset_of(block, kv_head, n, NUM_KV_HEADS, BLOCK_SIZE, HEAD_SIZE)
            slots = first_slot + tl.arange(0, BLOCK_N) * HEAD_SIZE
        else:
            blocks = tl.load(block_table + key_position // BLOCK_SIZE, mask=key_mask, other=0)
            slots = offset_of(blocks, kv_head, key_position, NUM_KV_HEADS, BLOCK_SIZE, HEAD_SIZE)
        # Slots beyond the end may hold anything, also NaN.
        k = tl.load(
            keys + slots[None, :] + columns[:, None],
            mask=key_mask[None, :] & column_mask[:, None],
            other=0.0,
        )
        scores = tl.dot(q, k, input_precision=PRECISION) * scaling
        visible = (key_position[None, :] <= query_position[:, None]) & key_mask[None, :]
        if HAS_WINDOW:
            visible = visible & (key_position[None, :] > query_position[:, None] - window)
        scores = tl.where(visible, scores, float("-inf"))
        m_new = tl.maximum(m_i, tl.max(scores, 1))
        # A query of a tile may not have seen a key yet: those before its window are read for the queries before it.
        m_finite = tl.where(m_new == float("-inf"), 0.0, m_new)
        p = tl.exp2(scores - m_finite[:, None])
        alpha = tl.exp2(m_i - m_finite)
        v = tl.load(
            values + slots[:, None] + columns[None, :],
            mask=key_mask[:, None] & column_mask[None, :],
            other=0.0,
        )
        l_i = l_i * alpha + tl.sum(p, 1)
        acc = acc * alpha[:, None]
        acc = tl.dot(p.to(v.dtype), v, acc, input_precision=PRECISION)
        m_i = m_new
    if MAX_SPLITS == 1:
        acc = acc / l_i[:, None]
        out_offsets = out + offsets[:, None] + columns[None, :]
        tl.store(out_offsets, acc, mask=query_mask[:, None] & column_mask[None, :])
    else:
        split = tl.program_id(2)
        part = (item.to(tl.int64) * NUM_HEADS + head) * MAX_SPLITS + split
        out_offsets = out + part[:, None] * HEAD_SIZE + columns[None, :]
        tl.store(out_offsets, acc, mask=query_mask[:, None] & column_mask[None, :])
        tl.store(split_stats + part * 2, m_i, mask=query_mask)
        tl.store(split_stats + part * 2 + 1, l_i, mask=query_mask)


@triton.jit
def _merge_splits_kernel(
    # As `_attention_kernel` stores them.
    split_out,
    split_stats,
    # (tokens, heads, head size).
    out,
    positions,
    window,
    NUM_HEADS: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    BLOCK_D: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
    SPLIT_KEYS: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    PDL: tl.constexpr,
):
    """Merge the splits of a decoding token's head."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    columns = tl.arange(0, BLOCK_D)
    column_mask = columns < HEAD_SIZE
    position = tl.load(positions + token)
    grid_dependency(PDL)
    out_offsets = out + (token * NUM_HEADS + head) * HEAD_SIZE + columns
    if position < 0:  # padding
        tl.store(out_offsets, tl.zeros([BLOCK_D], out.dtype.element_ty), mask=column_mask)
        return
    start = _first_key(position, window, HAS_WINDOW, ALIGNMENT)
    split_keys = _keys_per_split(position + 1 - start, SPLIT_KEYS, MAX_SPLITS)
    num_splits = tl.cdiv(position + 1 - start, split_keys)
    splits = tl.arange(0, MAX_SPLITS)
    split_mask = splits < num_splits
    part = (token * NUM_HEADS + head) * MAX_SPLITS + splits
    # All loads before the first of them is used: one wait in place of three.
    acc = tl.load(
        split_out + part[:, None] * HEAD_SIZE + columns[None, :],
        mask=split_mask[:, None] & column_mask[None, :],
        other=0.0,
    )
    m = tl.load(split_stats + part * 2, mask=split_mask, other=float("-inf"))
    sums = tl.load(split_stats + part * 2 + 1, mask=split_mask, other=0.0)
    scale = tl.exp2(m - tl.max(m, 0))
    total = tl.sum(scale * sums, 0)
    acc = tl.sum(acc * scale[:, None], 0)
    tl.store(out_offsets, acc / total, mask=column_mask)


def paged_attention(
    queries: Tensor,
    batch: PagedBatch,
    cache: PagedKVCache,
    layer: int,
    scaling: float,
    sliding_window: int | None,
) -> Tensor:
    out = torch.empty_like(queries)
    _, num_heads, head_size = queries.shape
    shared: dict[str, Any] = {
        "keys": cache.keys[layer],
        "values": cache.values[layer],
        "block_tables": batch.block_tables,
        "block_tables_stride": batch.block_tables.stride(0),
        "rows": batch.rows,
        "positions": batch.positions,
        "scaling": scaling * LOG2E,
        "window": sliding_window or 0,
        "NUM_HEADS": num_heads,
        "NUM_KV_HEADS": cache.num_kv_heads,
        "HEAD_SIZE": head_size,
        "BLOCK_SIZE": cache.block_size,
        "BLOCK_D": max(16, triton.next_power_of_2(head_size)),
        "SPLIT_KEYS": SPLIT_KEYS,
        "HAS_WINDOW": sliding_window is not None,
        "PRECISION": input_precision(queries),
        **launch_options(out),
    }
    if batch.num_decode_tokens:
        _attend_decodes(queries, batch, sliding_window, shared, out)
    if batch.prefill_tiles is not None:
        _attend_prefill_tiles(queries, batch, shared, out)
    return out


def _attend_decodes(
    queries: Tensor,
    batch: PagedBatch,
    sliding_window: int | None,
    shared: dict[str, Any],
    out: Tensor,
) -> None:
    """Attend with the decoding tokens, in splits, and merge them.

    Args:
        shared: arguments of `_attention_kernel`.
    """
    num_decodes, (_, num_heads, head_size) = batch.num_decode_tokens, queries.shape
    num_kv_heads, block_size, block_d = (
        shared[name] for name in ("NUM_KV_HEADS", "BLOCK_SIZE", "BLOCK_D")
    )
    block_n, warps, stages = DECODE_CONFIG
    if shared["PRECISION"] == "ieee" or block_d > 128:
        block_n, stages = min(block_n, 32), 2
    alignment = max(block_size, block_n)
    max_keys = batch.max_kv_len
    if sliding_window is not None:
        max_keys = min(max_keys, sliding_window + alignment)
    num_parts = num_decodes * num_heads * MAX_SPLITS
    split_out = queries.new_empty(num_parts * head_size, dtype=torch.float32)
    split_stats = queries.new_empty(num_parts * 2, dtype=torch.float32)
    # Splits that no sequence is long enough for need not be launched.
    num_splits = min(MAX_SPLITS, triton.cdiv(max_keys, SPLIT_KEYS))
    launch(
        _attention_kernel, (num_decodes, num_kv_heads, num_splits),
        queries, out=split_out, split_stats=split_stats,
        prefill_tiles=batch.rows,  # not read
        BLOCK_M=max(16, triton.next_power_of_2(num_heads // num_kv_heads)), BLOCK_N=block_n,
        MAX_SPLITS=MAX_SPLITS, ALIGNMENT=alignment,
        SPLIT_BLOCKS=_max_blocks_of_split(max_keys, block_size, block_n),
        **shared, num_warps=warps, num_stages=stages,
    )  # fmt: skip
    launch(
        _merge_splits_kernel, (num_decodes, num_heads),
        split_out, split_stats, out, batch.positions, shared["window"],
        NUM_HEADS=num_heads, HEAD_SIZE=head_size, ALIGNMENT=alignment, BLOCK_D=block_d,
        MAX_SPLITS=MAX_SPLITS, SPLIT_KEYS=SPLIT_KEYS, HAS_WINDOW=shared["HAS_WINDOW"],
        num_warps=2, **launch_options(out),
    )  # fmt: skip


def _max_blocks_of_split(max_keys: int, block_size: int, block_n: int) -> int:
    """Return the maximum number of blocks of a split, as a power of two; 0 if an iteration is not within one block."""
    if block_size % block_n:
        return 0
    split_keys = triton.cdiv(triton.cdiv(max_keys, MAX_SPLITS), SPLIT_KEYS) * SPLIT_KEYS
    return int(triton.next_power_of_2(triton.cdiv(split_keys + block_n, block_size)))


def _attend_prefill_tiles(
    queries: Tensor, batch: PagedBatch, shared: dict[str, Any], out: Tensor
) -> None:
    """Attend with the prefill tiles; arguments as for `_attend_decodes`."""
    assert batch.prefill_tiles is not None  # noqa: S101 (the caller has checked it)
    num_heads, num_kv_heads, block_d = (
        shared[name] for name in ("NUM_HEADS", "NUM_KV_HEADS", "BLOCK_D")
    )
    block_n, warps, stages = PREFILL_CONFIG
    is_float32 = shared["PRECISION"] == "ieee"
    if is_float32 or block_d > 128:
        block_n, stages = min(block_n, 32), 1
    if is_float32 and block_d > 128:  # or it takes more than the 99 KB of an RTX 4090
        block_n = 16
    num_queries = batch.tile_tokens * (num_heads // num_kv_heads)
    launch(
        _attention_kernel, (len(batch.prefill_tiles), num_kv_heads, 1),
        queries, out=out,
        split_stats=out,  # not written
        prefill_tiles=batch.prefill_tiles,
        BLOCK_M=max(16, triton.next_power_of_2(num_queries)), BLOCK_N=block_n,
        MAX_SPLITS=1, ALIGNMENT=block_n, SPLIT_BLOCKS=0,
        **shared, num_warps=warps, num_stages=stages,
    )  # fmt: skip


def prefill_tile_tokens(group_size: int) -> int:
    """Return how many successive tokens of a prompt one program should compute.

    Args:
        group_size: query heads of a key-value head.
    """
    return max(1, 64 // int(triton.next_power_of_2(group_size)))
