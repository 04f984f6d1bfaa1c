"""Triton kernels for weights of 4 bits, in the layout of `four_bit.FourBit`.

This module alone imports Triton; on a CPU it works where TRITON_INTERPRET is set before.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from worker.engine.cuda.four_bit import GROUP, FourBit
from worker.engine.cuda.four_bit_lookup import table

#: Rows of activations that a program takes at least and at most.
LEAST_ROWS, MOST_ROWS = 16, 64
#: Groups of weights that a program goes through at least.
LEAST_GROUPS = 4
#: Outputs that a program of `_sum` computes, and (outputs, inputs) one of `_dequantize`.
SUMMED, TILE = 1024, 64


@dataclass(frozen=True)
class Tiles:
    """How the product is cut into programs; speed alone depends on it, and the order of sums."""

    #: Outputs of a program; a multiple of 64 for a warp group's instructions.
    outputs: int = 64
    #: Blocks of weights that are on their way at a time.
    stages: int = 4
    warps: int = 4
    #: The inputs are split, into a power of two, while there are no more programs than these for a
    #: tile of rows: four for each processor of an H100.
    programs: int = 528

    def parts(self, weight: FourBit) -> int:
        """In how many equal parts the inputs are split: never by the number of rows."""
        programs = -(-weight.out_features // self.outputs)
        groups = weight.in_features // GROUP
        parts = 1
        while 2 * parts * programs <= self.programs and groups % (2 * parts) == 0:
            if groups // (2 * parts) < LEAST_GROUPS:
                break
            parts *= 2
        return parts


#: The first is the default; the others are there to be measured beside it.
TILES = (
    Tiles(),
    Tiles(programs=1056),
    Tiles(outputs=128),
    Tiles(outputs=128, stages=3, warps=8),
)


def multiply(
    x: Tensor, weight: FourBit, bias: Tensor | None = None, tiles: Tiles = TILES[0]
) -> Tensor:
    """Multiply few rows with a weight of 4 bits, which is read as it is.

    A row's result does not depend on the other rows, nor on how many there are: the sums' order is
    the weight's and the tiles' alone. Sums are in float32; the values of the code are rounded to
    16 bits, those of fp4 not at all, and the blocks' factors are not.

    Args:
        x: (rows, in), bfloat16 or float16; rows may have a stride.
        bias: (out,), of the same dtype.

    Returns:
        (rows, out), of the same dtype.
    """
    rows, features = len(x), weight.out_features
    x = x if x.stride(1) == 1 else x.contiguous()
    found = table(weight.values, x.dtype)
    parts = tiles.parts(weight)
    out = x.new_empty(rows, features)
    partial = out if parts == 1 else x.new_empty(parts, rows, features, dtype=torch.float32)
    block = min(max(LEAST_ROWS, triton.next_power_of_2(rows)), MOST_ROWS)
    grid = (triton.cdiv(rows, block), triton.cdiv(features, tiles.outputs), parts)
    _multiply[grid](
        x,
        weight.words.view(torch.int16) if x.is_cuda else weight.words,
        weight.scales,
        weight.code if x.is_cuda else found.values,
        bias if parts == 1 else None,
        partial,
        1 / found.factor,
        rows,
        features,
        x.stride(0),
        weight.in_features // GROUP // parts,
        tiles.outputs,
        block,
        tiles.stages,
        found.instructions if x.is_cuda else None,
        num_warps=tiles.warps,
        enable_fp_fusion=True,
    )
    if parts > 1:
        size = rows * features
        _sum[(triton.cdiv(size, SUMMED),)](
            partial, bias, out, size, features, parts, SUMMED, enable_fp_fusion=True
        )
    return out


def dequantize(weight: FourBit, dtype: torch.dtype) -> Tensor:
    """Return the matrix, (out, in): the same bits that bitsandbytes gives."""
    out = weight.words.new_empty(weight.out_features, weight.in_features, dtype=dtype)
    grid = (weight.in_features // GROUP, triton.cdiv(weight.out_features, TILE))
    _dequantize[grid](
        weight.words,
        weight.scales,
        weight.code,
        out,
        weight.out_features,
        weight.in_features,
        TILE,
        enable_fp_fusion=True,
    )
    return out


@triton.jit(do_not_specialize=["rows"])
def _multiply(
    x,
    words,
    scales,
    values,
    bias,
    out,
    inverse,
    rows,
    features,
    stride,
    groups: tl.constexpr,
    outputs: tl.constexpr,
    block_rows: tl.constexpr,
    stages: tl.constexpr,
    instructions: tl.constexpr,
):
    """Multiply a tile of the weight, outputs x a part of the inputs, with the activations' columns.

    The weight is the left factor: it goes from shared memory into registers as it is stored, and from
    there, as 16 bits, into the tensor cores. A block's factor multiplies the block's product.
    """
    m = tl.program_id(0) * block_rows + tl.arange(0, block_rows)
    n = tl.program_id(1) * outputs + tl.arange(0, outputs)
    part = tl.program_id(2)
    m_in = (m < rows)[None, :]
    n_in = n < features
    k = tl.arange(0, 32)
    x_at = x + m[None, :] * stride + k[:, None]
    found = tl.zeros((outputs, block_rows), tl.float32)
    for i in tl.range(groups, num_stages=stages):
        group = part * groups + i
        at = x_at + group * 128
        x0 = tl.load(at, mask=m_in, other=0.0)
        x1 = tl.load(at + 32, mask=m_in, other=0.0)
        x2 = tl.load(at + 64, mask=m_in, other=0.0)
        x3 = tl.load(at + 96, mask=m_in, other=0.0)
        first = tl.load(scales + 2 * group * features + n, mask=n_in, other=0.0)
        second = tl.load(scales + (2 * group + 1) * features + n, mask=n_in, other=0.0)
        row = group * features + n[:, None]
        if instructions is not None:
            # Two neighbours of 16 bits are a word: what the instructions take.
            pair = tl.load(words + row * 32 + k[None, :], mask=n_in[:, None], other=0)
            w0, w1, w2, w3 = tl.inline_asm_elementwise(
                instructions,
                "=r,=r,=r,=r,r",
                [pair],
                dtype=(
                    x.dtype.element_ty,
                    x.dtype.element_ty,
                    x.dtype.element_ty,
                    x.dtype.element_ty,
                ),
                is_pure=True,
                pack=2,
            )
        else:
            word = tl.load(words + row * 16 + k[None, :] // 2, mask=n_in[:, None], other=0)
            word = word >> (4 - 4 * (k[None, :] % 2))
            w0 = tl.load(values + (word & 15))
            w1 = tl.load(values + (word >> 8 & 15))
            w2 = tl.load(values + (word >> 16 & 15))
            w3 = tl.load(values + (word >> 24 & 15))
        found += tl.dot(w1, x1, tl.dot(w0, x0)) * first[:, None]
        found += tl.dot(w3, x3, tl.dot(w2, x2)) * second[:, None]
    found *= inverse
    if bias is not None:
        found += tl.load(bias + n, mask=n_in, other=0.0).to(tl.float32)[:, None]
    to = out + part * rows * features + m[None, :] * features + n[:, None]
    tl.store(to, found.to(out.dtype.element_ty), mask=m_in & n_in[:, None])


@triton.jit(do_not_specialize=["size"])
def _sum(partial, bias, out, size, features, parts: tl.constexpr, block: tl.constexpr):
    """Add the parts of the inputs, always in their order."""
    at = tl.program_id(0) * block + tl.arange(0, block)
    within = at < size
    found = tl.load(partial + at, mask=within, other=0.0)
    for part in tl.static_range(1, parts):
        found += tl.load(partial + part * size + at, mask=within, other=0.0)
    if bias is not None:
        found += tl.load(bias + at % features, mask=within, other=0.0).to(tl.float32)
    tl.store(out + at, found.to(out.dtype.element_ty), mask=within)


@triton.jit
def _dequantize(words, scales, code, out, features, inputs, outputs: tl.constexpr):
    """Write a block of each of some rows of the matrix."""
    block = tl.program_id(0)
    n = tl.program_id(1) * outputs + tl.arange(0, outputs)
    n_in = n < features
    k = tl.arange(0, 32)[None, :]
    word = tl.load(
        words + (block * features + n[:, None]) * 16 + k // 2, mask=n_in[:, None], other=0
    )
    word = word >> (4 - 4 * (k % 2))
    to = out + n[:, None].to(tl.int64) * inputs + block * 128 + k
    for quarter in tl.static_range(4):
        scale = tl.load(scales + (2 * block + quarter // 2) * features + n, mask=n_in, other=0.0)
        found = tl.load(code + (word >> 8 * quarter & 15)) * scale[:, None]
        tl.store(to + 32 * quarter, found.to(out.dtype.element_ty), mask=n_in[:, None])
