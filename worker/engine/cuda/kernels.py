# ruff: noqa: N803, N806  (Triton writes what is fixed when a kernel is compiled in capitals)
"""Triton kernels of a step; `worker.engine.cuda.plain` says the same in plain PyTorch.

What a kernel gives a token does not depend on which other tokens are in the step: what is summed, and in
which order, is a function of the token's own sequence. (Which kernel multiplies depends on how many there are:
`few`, and cuBLAS's choice.) Attention over many keys is split at places that depend on
their number alone (Flash-Decoding, Dao et al., 2023), over blocks that need not lie side by side
(PagedAttention, Kwon et al., SOSP 2023), with a running maximum (FlashAttention, Dao et al., NeurIPS
2022). The adapters' second factors are added where the products are used anyway: a tile of tokens visits
only the adapters that it has (Punica, Chen et al., MLSys 2024).
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from worker.engine import sampling
from worker.engine.cuda.batch import FlatBatch
from worker.engine.cuda.cache import BlockCache
from worker.engine.cuda.weights import Expansion

#: Keys of one program of a decoding token's attention, and the most programs of it.
SPLIT_KEYS, SPLITS = 256, 16
#: Most tokens of a step, then tokens, columns and warps of a program: few tokens where there are few, so
#: that most programs have one adapter. As measured on an H100.
Tiles = tuple[tuple[float, int, int, int], ...]
ADD: Tiles = ((512, 16, 128, 4), (math.inf, 64, 64, 4))
SWIGLU: Tiles = ((16, 16, 64, 4), (512, 32, 128, 4), (math.inf, 64, 64, 4))
ROTARY: Tiles = ((16, 16, 0, 4), (512, 32, 0, 4), (math.inf, 64, 0, 4))
#: Whether kernels are placed early (programmatic dependent launch) where the device can do that.
OVERLAP = True
LOG2E = 1.4426950408889634


@triton.jit
def _begin(PDL: tl.constexpr):
    """Wait for the kernel before, which has let this one be placed already; let the next one be."""
    if PDL:
        gdc_wait()
        gdc_launch_dependents()


@triton.jit
def _rms_norm_kernel(
    x,
    weight,
    out,
    epsilon,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    _begin(PDL)
    token = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    there = columns < SIZE
    found = tl.load(x + token * SIZE + columns, mask=there, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(found * found, 0) / SIZE + epsilon)
    # Rounded before the weight, as transformers does it.
    normed = (found * scale).to(out.dtype.element_ty).to(tl.float32)
    normed = normed * tl.load(weight + columns, mask=there, other=0.0).to(tl.float32)
    tl.store(out + token * SIZE + columns, normed, mask=there)


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    out = torch.empty_like(x)
    size = x.shape[1]
    block = triton.next_power_of_2(size)
    warps = 4 if block <= 2048 else 8
    _rms_norm_kernel[(len(x),)](
        x, weight, out, epsilon, size, block, num_warps=warps, **_overlap(x)
    )  # fmt: skip
    return out


@triton.jit
def _product(product, at, part_stride, mask, PARTS: tl.constexpr):
    """Load a tile of a product, which may be the sum of several parts: float32."""
    found = tl.load(product + at, mask=mask, other=0.0).to(tl.float32)
    for part in tl.static_range(1, PARTS):
        found += tl.load(product + part * part_stride + at, mask=mask, other=0.0).to(tl.float32)
    return found


@triton.jit
def _range(theirs, ADAPTERS: tl.constexpr):
    """Return the first and the last adapter of a tile of tokens; tokens stand by adapter."""
    first = tl.min(tl.where(theirs >= 0, theirs, ADAPTERS), 0)
    return first, tl.max(theirs, 0)


@triton.jit
def _entry(entry):
    """Load an adapter's entry: first column and number of the inner product's, place of its factor."""
    # All are multiples of `worker.engine.cuda.weights.ALIGNED`.
    start = tl.multiple_of(tl.load(entry), 16)
    rank = tl.multiple_of(tl.load(entry + 1), 16)
    place = tl.multiple_of(tl.load(entry + 2), 16)
    return start, rank, place


@triton.jit
def _inner(
    inner,
    inner_stride,
    part_stride,
    start,
    rank,
    r,
    tokens,
    mine,
    PARTS: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """Load what an adapter's first factor gave its tokens, zeros for all others: (tokens, ranks)."""
    ranks = r + tl.arange(0, BLOCK_R)
    at = tokens[:, None] * inner_stride + start + ranks[None, :]
    return _product(inner, at, part_stride, mine[:, None] & (ranks < rank)[None, :], PARTS)


@triton.jit
def _factor(b, place, stride, rank, r, columns, wanted, BLOCK_R: tl.constexpr):
    """Load some columns of an adapter's second factor, (ranks, columns)."""
    ranks = r + tl.arange(0, BLOCK_R)
    return tl.load(
        b + place + ranks[:, None] * stride + columns[None, :],
        mask=(ranks < rank)[:, None] & wanted[None, :],
        other=0.0,
    )


@triton.jit
def _add_kernel(
    x,
    product,
    product_stride,
    inner,
    inner_stride,
    part_stride,
    b,
    table,
    adapters,
    count,
    SIZE: tl.constexpr,
    ADAPTERS: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
    PRECISION: tl.constexpr,
    PDL: tl.constexpr,
):
    tile = tl.program_id(0)
    tokens = (tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    there = tokens < count
    columns = tl.arange(0, BLOCK_N)
    wanted = tile * BLOCK_N + columns < SIZE
    whole = there[:, None] & wanted[None, :]
    at = tile * BLOCK_N + columns[None, :]
    theirs = tl.load(adapters + tokens, mask=there, other=-1)
    _begin(PDL)
    found = _product(product, tokens[:, None] * product_stride + at, part_stride, whole, PARTS)
    more = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    low, high = _range(theirs, ADAPTERS)
    for adapter in range(low, high + 1):
        mine = theirs == adapter
        start, rank, place = _entry(table + adapter * 4)
        place += tile * BLOCK_N
        for r in range(0, rank, BLOCK_R):
            part = _inner(
                inner, inner_stride, part_stride, start, rank, r, tokens, mine, PARTS, BLOCK_R
            )  # fmt: skip
            factor = _factor(b, place, SIZE, rank, r, columns, wanted, BLOCK_R)
            more = tl.dot(part.to(factor.dtype), factor, more, input_precision=PRECISION)
    found += more
    before = tl.load(x + tokens[:, None] * SIZE + at, mask=whole, other=0.0).to(tl.float32)
    found = before + found.to(x.dtype.element_ty).to(tl.float32)
    tl.store(x + tokens[:, None] * SIZE + at, found, mask=whole)


def add(x: Tensor, product: Tensor, inner: Tensor, lora: Expansion, adapters: Tensor) -> Tensor:
    count, size = x.shape
    parts, part = _parts(product)
    block_m, block_n, warps = _tile(ADD, count)
    grid = (triton.cdiv(size, block_n), triton.cdiv(count, block_m))
    _add_kernel[grid](
        x, product, product.stride(-2), inner, inner.stride(-2), part, lora.b, lora.table, adapters,
        count, size, lora.adapters, parts, block_m, block_n, lora.ranks, _precision(x),
        num_warps=warps, num_stages=1, **_overlap(x),
    )  # fmt: skip
    return x


@triton.jit
def _swiglu_kernel(
    product,
    product_stride,
    inner,
    inner_stride,
    part_stride,
    out,
    b,
    table,
    adapters,
    count,
    SIZE: tl.constexpr,
    ADAPTERS: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
    PRECISION: tl.constexpr,
    PDL: tl.constexpr,
):
    tile = tl.program_id(0)
    tokens = (tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    there = tokens < count
    columns = tl.arange(0, BLOCK_N)
    wanted = tile * BLOCK_N + columns < SIZE
    whole = there[:, None] & wanted[None, :]
    at = tokens[:, None] * product_stride + tile * BLOCK_N + columns[None, :]
    theirs = tl.load(adapters + tokens, mask=there, other=-1)
    _begin(PDL)
    gate = _product(product, at, part_stride, whole, PARTS)
    up = _product(product, SIZE + at, part_stride, whole, PARTS)
    more_gate = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    more_up = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    low, high = _range(theirs, ADAPTERS)
    for adapter in range(low, high + 1):
        mine = theirs == adapter
        entry = table + adapter * 4
        other = entry + ADAPTERS * 4
        start, rank, place = _entry(entry)
        start_up, rank_up, place_up = _entry(other)
        here = tile * BLOCK_N + columns
        # Both are loaded before either is multiplied: one wait in place of two.
        for r in range(0, tl.maximum(rank, rank_up), BLOCK_R):
            part = _inner(
                inner, inner_stride, part_stride, start, rank, r, tokens, mine, PARTS, BLOCK_R
            )  # fmt: skip
            part_up = _inner(
                inner, inner_stride, part_stride, start_up, rank_up, r, tokens, mine, PARTS, BLOCK_R
            )  # fmt: skip
            factor = _factor(b, place, SIZE, rank, r, here, wanted, BLOCK_R)
            factor_up = _factor(b, place_up, SIZE, rank_up, r, here, wanted, BLOCK_R)
            more_gate = tl.dot(part.to(factor.dtype), factor, more_gate, input_precision=PRECISION)
            more_up = tl.dot(
                part_up.to(factor.dtype), factor_up, more_up, input_precision=PRECISION
            )
    gate += more_gate
    up += more_up
    gate = gate.to(out.dtype.element_ty).to(tl.float32)
    up = up.to(out.dtype.element_ty).to(tl.float32)
    gate = (gate * tl.sigmoid(gate)).to(out.dtype.element_ty).to(tl.float32)
    place = tokens[:, None] * SIZE + tile * BLOCK_N + columns[None, :]
    tl.store(out + place, gate * up, mask=whole)


def swiglu(product: Tensor, inner: Tensor, lora: Expansion, adapters: Tensor) -> Tensor:
    count, size = product.shape[-2], lora.out // 2
    parts, part = _parts(product)
    out = lora.b.new_empty(count, size)
    block_m, block_n, warps = _tile(SWIGLU, count)
    grid = (triton.cdiv(size, block_n), triton.cdiv(count, block_m))
    _swiglu_kernel[grid](
        product, product.stride(-2), inner, inner.stride(-2), part, out, lora.b, lora.table,
        adapters, count, size, lora.adapters, parts, block_m, block_n, lora.ranks, _precision(out),
        num_warps=warps, num_stages=1, **_overlap(out),
    )  # fmt: skip
    return out


@triton.jit
def _heads_kernel(
    product,
    product_stride,
    inner,
    inner_stride,
    part_stride,
    b,
    table,
    adapters,
    rows,
    positions,
    cos,
    sin,
    queries,
    keys,
    values,
    tables,
    tables_stride,
    count,
    HEADS: tl.constexpr,
    SHARED: tl.constexpr,
    SIZE: tl.constexpr,
    PAGE: tl.constexpr,
    ADAPTERS: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
    PRECISION: tl.constexpr,
    PDL: tl.constexpr,
):
    """A head of a tile of tokens: its adapters' part, its rotation, and to the place it belongs."""
    head = tl.program_id(0)
    tokens = (tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    there = tokens < count
    HALF: tl.constexpr = SIZE // 2
    columns = tl.arange(0, BLOCK_N)
    wanted = columns < HALF
    whole = there[:, None] & wanted[None, :]
    at = tokens[:, None] * product_stride + head * SIZE + columns[None, :]
    theirs = tl.load(adapters + tokens, mask=there, other=-1)
    position = tl.load(positions + tokens, mask=there, other=-1)
    # Which projection it is of, and its first column there.
    which = (head >= HEADS).to(tl.int32) + (head >= HEADS + SHARED).to(tl.int32)
    column = (head - (head >= HEADS).to(tl.int32) * HEADS) * SIZE
    column = tl.where(head >= HEADS + SHARED, column - SHARED * SIZE, column)
    _begin(PDL)
    first = _product(product, at, part_stride, whole, PARTS)
    second = _product(product, HALF + at, part_stride, whole, PARTS)
    more_first = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    more_second = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    low, high = _range(theirs, ADAPTERS)
    for adapter in range(low, high + 1):
        mine = theirs == adapter
        entry = table + (which * ADAPTERS + adapter) * 4
        start, rank, place = _entry(entry)
        stride = tl.where(which == 0, HEADS * SIZE, SHARED * SIZE)
        for r in range(0, rank, BLOCK_R):
            part = _inner(
                inner, inner_stride, part_stride, start, rank, r, tokens, mine, PARTS, BLOCK_R
            )  # fmt: skip
            factor = _factor(b, place, stride, rank, r, column + columns, wanted, BLOCK_R)
            factor_second = _factor(
                b, place, stride, rank, r, column + HALF + columns, wanted, BLOCK_R
            )  # fmt: skip
            part = part.to(factor.dtype)
            more_first = tl.dot(part, factor, more_first, input_precision=PRECISION)
            more_second = tl.dot(part, factor_second, more_second, input_precision=PRECISION)
    first += more_first
    second += more_second
    first = first.to(queries.dtype.element_ty).to(tl.float32)
    second = second.to(queries.dtype.element_ty).to(tl.float32)
    alive = position >= 0
    if head < HEADS + SHARED:
        angle = position[:, None] * HALF + columns[None, :]
        live = alive[:, None] & wanted[None, :]
        c = tl.load(cos + angle, mask=live, other=1.0)
        s = tl.load(sin + angle, mask=live, other=0.0)
        turned = first * c - second * s
        second = second * c + first * s
        first = turned
    if head < HEADS:
        place = (tokens[:, None] * HEADS + head) * SIZE + columns[None, :]
        tl.store(queries + place, first, mask=whole)
        tl.store(queries + HALF + place, second, mask=whole)
    else:
        row = tl.load(rows + tokens, mask=there, other=0)
        block = tl.load(tables + row * tables_stride + position // PAGE, mask=alive, other=0)
        which = (head - HEADS) % SHARED
        place = ((block.to(tl.int64) * SHARED + which) * PAGE + position % PAGE) * SIZE
        place = place[:, None] + columns[None, :]
        live = alive[:, None] & wanted[None, :]
        if head < HEADS + SHARED:
            tl.store(keys + place, first, mask=live)
            tl.store(keys + HALF + place, second, mask=live)
        else:
            tl.store(values + place, first, mask=live)
            tl.store(values + HALF + place, second, mask=live)


def heads(
    product: Tensor,
    inner: Tensor,
    lora: Expansion,
    batch: FlatBatch,
    cos: Tensor,
    sin: Tensor,
    cache: BlockCache,
    layer: int,
) -> Tensor:
    count, shared, size = product.shape[-2], cache.heads, cache.size
    number = lora.out // size - 2 * shared
    parts, part = _parts(product)
    queries = lora.b.new_empty(count, number, size)
    block_m, _, warps = _tile(ROTARY, count)
    grid = (number + 2 * shared, triton.cdiv(count, block_m))
    _heads_kernel[grid](
        product, product.stride(-2), inner, inner.stride(-2), part, lora.b, lora.table,
        batch.adapters, batch.rows, batch.positions, cos, sin, queries, cache.keys[layer], cache.values[layer],
        batch.tables, batch.tables.stride(0), count,
        number, shared, size, cache.block_size, lora.adapters, parts, block_m,
        max(16, triton.next_power_of_2(size // 2)), lora.ranks, _precision(queries),
        num_warps=warps, num_stages=1, **_overlap(queries),
    )  # fmt: skip
    return queries


@triton.jit
def _store_kernel(
    key,
    value,
    rows,
    positions,
    keys,
    values,
    tables,
    tables_stride,
    SHARED: tl.constexpr,
    SIZE: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    position = tl.load(positions + token)
    if position >= 0:
        row = tl.load(rows + token)
        block = tl.load(tables + row * tables_stride + position // PAGE).to(tl.int64)
        columns = tl.arange(0, BLOCK)
        wanted = columns < SIZE
        at = (token * SHARED + head) * SIZE + columns
        place = ((block * SHARED + head) * PAGE + position % PAGE) * SIZE + columns
        tl.store(keys + place, tl.load(key + at, mask=wanted), mask=wanted)
        tl.store(values + place, tl.load(value + at, mask=wanted), mask=wanted)


def store(key: Tensor, value: Tensor, batch: FlatBatch, cache: BlockCache, layer: int) -> None:
    count, shared, size = key.shape
    _store_kernel[(count, shared)](
        key, value, batch.rows, batch.positions, cache.keys[layer], cache.values[layer],
        batch.tables, batch.tables.stride(0),
        shared, size, cache.block_size, triton.next_power_of_2(size),
        num_warps=1,
    )  # fmt: skip


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
    _begin(PDL)
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
    _begin(PDL)
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
    precision = _precision(queries)
    fixed: dict[str, Any] = {
        "HEADS": number,
        "SHARED": cache.heads,
        "SIZE": size,
        "PAGE": cache.block_size,
        "BLOCK_D": wide,
        "WINDOW": window is not None,
        "PRECISION": precision,
    }
    scaling, reach = scaling * LOG2E, window or 0
    if decoding := batch.decoding:
        block_n, warps, stages = DECODING
        if precision == "ieee" or wide > 128:
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
            num_warps=warps, num_stages=stages, **_overlap(out),
        )  # fmt: skip
        _merge_kernel[(decoding, number)](
            parts, sums, out, batch.positions, reach,
            number, size, aligned, wide, SPLITS, SPLIT_KEYS, window is not None,
            num_warps=2, **_overlap(out),
        )  # fmt: skip
    if batch.work is not None:
        block_n, warps, stages = PROMPTS
        if precision == "ieee" or wide > 128:
            block_n, stages = min(block_n, 32), 1
        lines = batch.work_tokens * group
        _attention_kernel[(len(batch.work), cache.heads, 1)](
            queries, keys, values, out, out, tables, tables.stride(0), batch.rows,
            batch.positions, batch.work, scaling, reach,
            BLOCK_M=max(16, triton.next_power_of_2(lines)),
            BLOCK_N=block_n, SPLITS=1, SPLIT_KEYS=SPLIT_KEYS, ALIGNED=block_n, LISTED=0, **fixed,
            num_warps=warps, num_stages=stages, **_overlap(out),
        )  # fmt: skip
    return out


#: Keys of a turn of the loop, warps and stages, of decoding tokens' attention and of prompts'.
DECODING = (32, 4, 4)
PROMPTS = (64, 4, 3)


def work_tokens(group: int) -> int:
    """Return how many successive tokens of a prompt one program should have.

    Args:
        group: query heads of a key head.
    """
    return max(1, 64 // int(triton.next_power_of_2(group)))


def _tile(tiles: Tiles, count: int) -> tuple[int, int, int]:
    """Return tokens, columns and warps of a program that adds adapters."""
    return next(tile for most, *tile in tiles if count <= most)  # type: ignore[return-value]


def _overlap(x: Tensor) -> dict[str, bool]:
    """Return how a kernel is launched: from the H100 on, it is placed while the one before still runs."""
    overlaps = OVERLAP and x.device.type == "cuda" and _capability(x.device) >= (9, 0)
    return {"PDL": True, "launch_pdl": True} if overlaps else {"PDL": False}


@cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def _parts(product: Tensor) -> tuple[int, int]:
    """Return how many parts a product comes in, and how far they are apart."""
    return (1, 0) if product.dim() == 2 else (len(product), product.stride(0))


@triton.jit
def _linear_kernel(
    x,
    x_stride,
    weight,
    out,
    part_stride,
    count,
    OUT: tl.constexpr,
    IN: tl.constexpr,
    EACH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    PDL: tl.constexpr,
):
    _begin(PDL)
    part = tl.program_id(1)
    lines = tl.arange(0, BLOCK_M)
    there = lines < count
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    wanted = columns < OUT
    k = tl.arange(0, BLOCK_K)
    found = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    first = part * EACH
    for start in range(first, min(first + EACH, IN), BLOCK_K):
        inside = start + k < IN
        few = tl.load(
            x + lines[:, None] * x_stride + start + k[None, :],
            mask=there[:, None] & inside[None, :],
            other=0.0,
        )
        many = tl.load(
            weight + columns[None, :].to(tl.int64) * IN + start + k[:, None],
            mask=wanted[None, :] & inside[:, None],
            other=0.0,
        )
        found = tl.dot(few, many, found, input_precision=PRECISION)
    place = out + part * part_stride + lines[:, None] * OUT + columns[None, :]
    tl.store(place, found, mask=there[:, None] & wanted[None, :])


@triton.jit
def _mix(x):
    """Hash int64 numbers, as `worker.engine.sampling` does."""
    # As numbers of 64 bits with a sign: 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB.
    x = (x + 1) * -7046029254386353131
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * -4658895280553007687
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * -7723592293110705685
    return x ^ ((x >> 31) & 0x1FFFFFFFF)


@triton.jit
def _draw_kernel(
    scores,
    tokens,
    temperature,
    top_k,
    noise,
    drawn,
    WIDTH: tl.constexpr,
    TIED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    places = tl.arange(0, BLOCK)
    there = places < WIDTH
    score = tl.load(scores + row * WIDTH + places, mask=there, other=float("-inf")).to(tl.float32)
    token = tl.load(tokens + row * WIDTH + places, mask=there, other=0)
    heat = tl.load(temperature + row)
    most = tl.load(top_k + row)
    last = tl.load(scores + row * WIDTH + tl.minimum(most, WIDTH) - 1).to(tl.float32)
    left = there & (score >= last) & (places < most + TIED)
    greedy = heat == 0
    bits = (_mix(tl.load(noise + row) + token) >> 11) & 0x1FFFFFFFFFFFFF
    uniform = (bits.to(tl.float64) + 0.5) * 1.1102230246251565e-16
    noisy = (score / tl.where(greedy, 1.0, heat)).to(tl.float64) - tl.log(-tl.log(uniform))
    noisy = tl.where(left, noisy, float("-inf"))
    # A row of which nothing is left has scores that are no numbers, which is looked at apart.
    best = tl.where(greedy, 0, tl.argmax(noisy, 0))
    tl.store(drawn + row, tl.sum(tl.where(places == best, token, 0), 0))


def draw(
    logits: Tensor, temperature: Tensor, top_k: Tensor, noise: Tensor, most: int
) -> tuple[Tensor, Tensor]:
    width = min(most + sampling.TIED, logits.shape[-1])
    scores, tokens = sampling.in_order(logits, width)
    drawn = torch.empty_like(noise)
    _draw_kernel[(len(logits),)](
        scores, tokens, temperature, top_k, noise, drawn,
        width, sampling.TIED, triton.next_power_of_2(width), num_warps=1,
    )  # fmt: skip
    return drawn, logits.amax(dim=-1).isfinite()


def few(x: Tensor, weight: Tensor) -> bool:
    """Whether `linear` is the faster product."""
    return len(x) <= FEW_ROWS and weight.numel() <= SMALL


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply a few rows with a matrix, in parts that add up to the product.

    cuBLAS reaches two thirds of the memory's bandwidth with the smaller matrices of a 7B model.

    Args:
        x: (tokens, in), at most `FEW_ROWS`.
        weight: (out, in).

    Returns:
        (parts, tokens, out) float32, where x and weight are float32 too or of 16 bits.
    """
    (count, size), number = x.shape, len(weight)
    block_n, block_k, parts, warps, stages = LINEAR
    if x.dtype is torch.float32:
        block_k, stages = 32, 2
    each = triton.cdiv(triton.cdiv(size, block_k), parts) * block_k
    out = x.new_empty(parts, count, number, dtype=torch.float32)
    _linear_kernel[(triton.cdiv(number, block_n), parts)](
        x, x.stride(0), weight, out, out.stride(0), count,
        number, size, each, max(16, triton.next_power_of_2(count)), block_n, block_k, _precision(x),
        num_warps=warps, num_stages=stages, **_overlap(out),
    )  # fmt: skip
    return out


#: Columns, steps along the input, parts, warps and stages of `linear`.
LINEAR = (64, 128, 2, 4, 4)
#: The most tokens of a step whose products are `linear`'s, of matrices of at most so many elements.
FEW_ROWS, SMALL = 16, 2**26


def _precision(x: Tensor) -> str:
    return "ieee" if x.dtype is torch.float32 else "tf32"
