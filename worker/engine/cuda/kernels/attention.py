# ruff: noqa: N803, N806  (Triton writes what is fixed when a kernel is compiled in capitals)
"""Attention over blocks of keys and values, of single tokens and of pieces of prompts.

Attention of a single token over many keys is split at places that depend on their number alone
(Flash-Decoding, Dao et al., 2023), over blocks that need not lie side by side (PagedAttention, Kwon et al.,
SOSP 2023), with a running maximum (FlashAttention, Dao et al., NeurIPS 2022).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from worker.engine.attention.paged_batch import FlatBatch
from worker.engine.cuda.kernels.common import begin, options, precision
from worker.engine.kv.paged_cache import BlockCache

#: Keys of one program of a decoding token's attention, and the most programs of it.
SPLIT_KEYS, SPLITS = 256, 16
#: Keys of a turn of the loop, warps and stages, of decoding tokens' attention and of prompts'.
DECODING = (32, 4, 4)
PROMPTS = (64, 4, 3)
LOG2E = 1.4426950408889634


@triton.jit
def _attention_kernel(
    queries,
    keys,
    values,
    out,
    sums,
    tables,
    tables_stride,
    rows,
    positions,
    work,
    scaling,
    window,
    HEADS: tl.constexpr,
    SHARED: tl.constexpr,
    SIZE: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SPLITS: tl.constexpr,
    SPLIT_KEYS: tl.constexpr,
    WINDOW: tl.constexpr,
    ALIGNED: tl.constexpr,
    LISTED: tl.constexpr,
    PRECISION: tl.constexpr,
    PDL: tl.constexpr,
):
    """Queries of successive tokens of one sequence and of one key head over some of its keys.

    With ``SPLITS`` == 1 a program is for the item of ``work`` (first token, number, row, position) and
    all of its keys; else it is for a single token and one of its splits, and writes its sums.
    """
    begin(PDL)
    item = tl.program_id(0)
    head = tl.program_id(1)
    GROUP: tl.constexpr = HEADS // SHARED
    if SPLITS == 1:
        first = tl.load(work + item * 4)
        number = tl.load(work + item * 4 + 1)
        row = tl.load(work + item * 4 + 2)
        position = tl.load(work + item * 4 + 3)
    else:
        first = item
        number = 1
        row = tl.load(rows + item)
        position = tl.load(positions + item)
    # Keys from `low` on, before `high`.
    high = position + number
    low = 0
    if WINDOW:
        low = tl.maximum(position - window + 1, 0) // ALIGNED * ALIGNED
    if SPLITS > 1:
        split = tl.program_id(2)
        each = tl.cdiv(tl.maximum(high - low, 1), SPLIT_KEYS * SPLITS) * SPLIT_KEYS
        low = low + split * each
        high = tl.minimum(low + each, high)
        if low >= high or position < 0:
            return
    lines = tl.arange(0, BLOCK_M)
    token = lines // GROUP
    of = head * GROUP + lines % GROUP
    alive = token < number
    columns = tl.arange(0, BLOCK_D)
    wanted = columns < SIZE
    at = ((first + token).to(tl.int64) * HEADS + of) * SIZE
    q = tl.load(
        queries + at[:, None] + columns[None, :], mask=alive[:, None] & wanted[None, :], other=0.0
    )
    mine = position + token
    most = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    found = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    table = tables + row.to(tl.int64) * tables_stride
    if LISTED:
        # All blocks at once: a loop whose loads wait for a load in it runs but one turn ahead.
        listed = tl.arange(0, LISTED)
        its = low // PAGE + listed
        ids = tl.load(table + its, mask=its * PAGE < high, other=0)
    for n in range(low, high, BLOCK_N):
        others = n + tl.arange(0, BLOCK_N)
        seen = others < high
        if LISTED:
            block = tl.sum(tl.where(listed == (n - low) // PAGE, ids, 0), 0).to(tl.int64)
            place = ((block * SHARED + head) * PAGE + n % PAGE) * SIZE
            places = place + tl.arange(0, BLOCK_N) * SIZE
        elif PAGE % BLOCK_N == 0:
            block = tl.load(table + n // PAGE).to(tl.int64)
            place = ((block * SHARED + head) * PAGE + n % PAGE) * SIZE
            places = place + tl.arange(0, BLOCK_N) * SIZE
        else:
            blocks = tl.load(table + others // PAGE, mask=seen, other=0).to(tl.int64)
            places = ((blocks * SHARED + head) * PAGE + others % PAGE) * SIZE
        # What is not seen may be anything, a NaN too.
        k = tl.load(
            keys + places[None, :] + columns[:, None],
            mask=seen[None, :] & wanted[:, None],
            other=0.0,
        )
        scores = tl.dot(q, k, input_precision=PRECISION) * scaling
        sees = (others[None, :] <= mine[:, None]) & seen[None, :]
        if WINDOW:
            sees = sees & (others[None, :] > mine[:, None] - window)
        scores = tl.where(sees, scores, float("-inf"))
        larger = tl.maximum(most, tl.max(scores, 1))
        base = tl.where(larger == float("-inf"), 0.0, larger)
        shares = tl.exp2(scores - base[:, None])
        kept = tl.exp2(most - base)
        v = tl.load(
            values + places[:, None] + columns[None, :],
            mask=seen[:, None] & wanted[None, :],
            other=0.0,
        )
        total = total * kept + tl.sum(shares, 1)
        found = found * kept[:, None]
        found = tl.dot(shares.to(v.dtype), v, found, input_precision=PRECISION)
        most = larger
    if SPLITS == 1:
        found = found / total[:, None]
        place = out + at[:, None] + columns[None, :]
        tl.store(place, found, mask=alive[:, None] & wanted[None, :])
    else:
        split = tl.program_id(2)
        at = (item.to(tl.int64) * HEADS + of) * SPLITS + split
        place = out + at[:, None] * SIZE + columns[None, :]
        tl.store(place, found, mask=alive[:, None] & wanted[None, :])
        tl.store(sums + at * 2, most, mask=alive)
        tl.store(sums + at * 2 + 1, total, mask=alive)


@triton.jit
def _merge_kernel(
    parts,
    sums,
    out,
    positions,
    window,
    HEADS: tl.constexpr,
    SIZE: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SPLITS: tl.constexpr,
    SPLIT_KEYS: tl.constexpr,
    WINDOW: tl.constexpr,
    PDL: tl.constexpr,
):
    begin(PDL)
    item = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    columns = tl.arange(0, BLOCK_D)
    wanted = columns < SIZE
    position = tl.load(positions + item)
    place = out + (item * HEADS + head) * SIZE + columns
    if position < 0:
        tl.store(place, tl.zeros([BLOCK_D], out.dtype.element_ty), mask=wanted)
        return
    low = 0
    if WINDOW:
        low = tl.maximum(position - window + 1, 0) // ALIGNED * ALIGNED
    each = tl.cdiv(position + 1 - low, SPLIT_KEYS * SPLITS) * SPLIT_KEYS
    number = tl.cdiv(position + 1 - low, each)
    splits = tl.arange(0, SPLITS)
    used = splits < number
    at = (item * HEADS + head) * SPLITS + splits
    most = tl.load(sums + at * 2, mask=used, other=float("-inf"))
    shares = tl.exp2(most - tl.max(most, 0))
    total = tl.sum(shares * tl.load(sums + at * 2 + 1, mask=used, other=0.0), 0)
    part = tl.load(
        parts + at[:, None] * SIZE + columns[None, :],
        mask=used[:, None] & wanted[None, :],
        other=0.0,
    )
    found = tl.sum(part * shares[:, None], 0)
    tl.store(place, found / total, mask=wanted)


def attend(
    queries: Tensor,
    batch: FlatBatch,
    cache: BlockCache,
    layer: int,
    scaling: float,
    window: int | None,
) -> Tensor:
    out = torch.empty_like(queries)
    _, number, size = queries.shape
    keys, values, tables = cache.keys[layer], cache.values[layer], batch.tables
    group = number // cache.heads
    wide = max(16, triton.next_power_of_2(size))
    accuracy = precision(queries)
    fixed: dict[str, Any] = {
        "HEADS": number,
        "SHARED": cache.heads,
        "SIZE": size,
        "PAGE": cache.block_size,
        "BLOCK_D": wide,
        "WINDOW": window is not None,
        "PRECISION": accuracy,
    }
    scaling, reach = scaling * LOG2E, window or 0
    if decoding := batch.decoding:
        block_n, warps, stages = DECODING
        if accuracy == "ieee" or wide > 128:
            block_n, stages = min(block_n, 32), 2
        # The blocks of a split, where a turn of the loop is within one.
        listed = triton.cdiv(triton.cdiv(batch.reach, SPLITS), SPLIT_KEYS) * SPLIT_KEYS + block_n
        listed = triton.next_power_of_2(triton.cdiv(listed, cache.block_size))
        aligned = max(cache.block_size, block_n)
        listed = 0 if cache.block_size % block_n else listed
        parts = queries.new_empty(decoding * number * SPLITS * size, dtype=torch.float32)
        sums = queries.new_empty(decoding * number * SPLITS * 2, dtype=torch.float32)
        # Splits that no sequence is long enough for need not be launched.
        splits = min(SPLITS, triton.cdiv(batch.reach, SPLIT_KEYS))
        _attention_kernel[(decoding, cache.heads, splits)](
            queries, keys, values, parts, sums, tables, tables.stride(0), batch.rows,
            batch.positions, batch.rows, scaling, reach,
            BLOCK_M=max(16, triton.next_power_of_2(group)), BLOCK_N=block_n,
            SPLITS=SPLITS, SPLIT_KEYS=SPLIT_KEYS, ALIGNED=aligned, LISTED=listed, **fixed,
            num_warps=warps, num_stages=stages, **options(out),
        )  # fmt: skip
        _merge_kernel[(decoding, number)](
            parts, sums, out, batch.positions, reach,
            number, size, aligned, wide, SPLITS, SPLIT_KEYS, window is not None,
            num_warps=2, **options(out),
        )  # fmt: skip
    if batch.work is not None:
        block_n, warps, stages = PROMPTS
        if accuracy == "ieee" or wide > 128:
            block_n, stages = min(block_n, 32), 1
        lines = batch.work_tokens * group
        _attention_kernel[(len(batch.work), cache.heads, 1)](
            queries, keys, values, out, out, tables, tables.stride(0), batch.rows,
            batch.positions, batch.work, scaling, reach,
            BLOCK_M=max(16, triton.next_power_of_2(lines)),
            BLOCK_N=block_n, SPLITS=1, SPLIT_KEYS=SPLIT_KEYS, ALIGNED=block_n, LISTED=0, **fixed,
            num_warps=warps, num_stages=stages, **options(out),
        )  # fmt: skip
    return out


def work_tokens(group: int) -> int:
    """Return how many successive tokens of a prompt one program should have.

    Args:
        group: query heads of a key head.
    """
    return max(1, 64 // int(triton.next_power_of_2(group)))
