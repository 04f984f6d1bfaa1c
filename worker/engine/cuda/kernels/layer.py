# ruff: noqa: N803, N806  (Triton writes what is fixed when a kernel is compiled in capitals)
"""What lies between the products of a layer: norms, adapters, rotation, activation, residual.

The adapters' second factors are added where the products are used anyway: a tile of tokens visits only
the adapters that it has (Punica, Chen et al., MLSys 2024).
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from worker.engine.attention.paged_batch import FlatBatch
from worker.engine.cuda.kernels.common import FUSED, begin, options, precision
from worker.engine.cuda.lora_weights import Expansion
from worker.engine.kv.paged_cache import BlockCache

#: Most tokens of a step, then tokens, columns and warps of a program: few tokens where there are few, so
#: that most programs have one adapter. As measured on an H100.
Tiles = tuple[tuple[float, int, int, int], ...]
ADD: Tiles = ((512, 16, 128, 4), (math.inf, 64, 64, 4))
SWIGLU: Tiles = ((16, 16, 64, 4), (512, 32, 128, 4), (math.inf, 64, 64, 4))
ROTARY: Tiles = ((16, 16, 0, 4), (512, 32, 0, 4), (math.inf, 64, 0, 4))


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
    begin(PDL)
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
        x, weight, out, epsilon, size, block, num_warps=warps, **options(x)
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
    # All are multiples of `worker.engine.cuda.lora_weights.ALIGNED`.
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
    begin(PDL)
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
        count, size, lora.adapters, parts, block_m, block_n, lora.ranks, precision(x),
        num_warps=warps, num_stages=1, **options(x),
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
    begin(PDL)
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
        adapters, count, size, lora.adapters, parts, block_m, block_n, lora.ranks, precision(out),
        num_warps=warps, num_stages=1, **options(out),
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
    begin(PDL)
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
        max(16, triton.next_power_of_2(size // 2)), lora.ranks, precision(queries),
        num_warps=warps, num_stages=1, **options(queries),
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
        **FUSED,
    )  # fmt: skip


def _tile(tiles: Tiles, count: int) -> tuple[int, int, int]:
    """Return tokens, columns and warps of a program that adds adapters."""
    return next(tile for most, *tile in tiles if count <= most)  # type: ignore[return-value]


def _parts(product: Tensor) -> tuple[int, int]:
    """Return how many parts a product comes in, and how far they are apart."""
    return (1, 0) if product.dim() == 2 else (len(product), product.stride(0))
