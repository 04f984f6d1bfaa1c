"""Triton kernels for weights of 4 bits, in the layout of `four_bit.FourBitWeight`.

On a CPU they run only in Triton's interpreter (TRITON_INTERPRET=1 before the import).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from worker.engine.cuda.four_bit import GROUP, FourBitWeight
from worker.engine.cuda.four_bit_lookup import lookup_table

#: Minimum and maximum number of rows of activations of a program.
MIN_ROWS, MAX_ROWS = 16, 64
#: Minimum number of groups of weights of a program.
MIN_GROUPS = 4
#: Outputs of a program of `_sum_parts_kernel`, and output features of one of `_dequantize_kernel`.
SUM_BLOCK, DEQUANTIZE_BLOCK = 1024, 64


@dataclass(frozen=True)
class TileConfig:
    """How the product is divided into programs. It affects the speed, and the order of sums."""

    #: Outputs of a program; a multiple of 64 for a warp group's instructions.
    block_n: int = 64
    #: Pipeline stages of loads.
    stages: int = 4
    warps: int = 4
    #: The maximum number of programs for a tile of rows, up to which the inputs are split (split k) in
    #: powers of two: four for each multiprocessor of an H100.
    max_programs: int = 528

    def num_parts(self, weight: FourBitWeight) -> int:
        """Return the number of equal parts of the inputs. It does not depend on the number of rows."""
        num_programs = -(-weight.out_features // self.block_n)
        num_groups = weight.in_features // GROUP
        parts = 1
        while 2 * parts * num_programs <= self.max_programs and num_groups % (2 * parts) == 0:
            if num_groups // (2 * parts) < MIN_GROUPS:
                break
            parts *= 2
        return parts


#: The first is the default; the benchmark measures the others beside it.
TILE_CONFIGS = (
    TileConfig(),
    TileConfig(max_programs=1056),
    TileConfig(block_n=128),
    TileConfig(block_n=128, stages=3, warps=8),
)


def multiply(
    x: Tensor,
    weight: FourBitWeight,
    bias: Tensor | None = None,
    config: TileConfig = TILE_CONFIGS[0],
) -> Tensor:
    """Multiply few rows with a weight of 4 bits, without dequantising it first.

    A row's result does not depend on the other rows, nor on their number: the order of sums depends on the
    weight and the config alone. Sums are in float32. The code's values are rounded to 16 bits, those of
    fp4 without error; the scales are not rounded.

    Args:
        x: (rows, in), bfloat16 or float16; rows may have a stride.
        weight: (out, in).
        bias: (out,), of the same dtype.
        config: how the product is divided.

    Returns:
        (rows, out), of the same dtype.
    """
    num_rows, out_features = len(x), weight.out_features
    x = x if x.stride(1) == 1 else x.contiguous()
    table = lookup_table(weight.values, x.dtype)
    num_parts = config.num_parts(weight)
    out = x.new_empty(num_rows, out_features)
    partial = out
    if num_parts > 1:
        partial = x.new_empty(num_parts, num_rows, out_features, dtype=torch.float32)
    block_m = min(max(MIN_ROWS, triton.next_power_of_2(num_rows)), MAX_ROWS)
    grid = (
        triton.cdiv(num_rows, block_m),
        triton.cdiv(out_features, config.block_n),
        num_parts,
    )
    _multiply_kernel[grid](
        x,
        weight.words.view(torch.int16) if x.is_cuda else weight.words,
        weight.scales,
        weight.code if x.is_cuda else table.values,
        bias if num_parts == 1 else None,
        partial,
        1 / table.factor,
        num_rows,
        out_features,
        x.stride(0),
        weight.in_features // GROUP // num_parts,
        config.block_n,
        block_m,
        config.stages,
        table.instructions if x.is_cuda else None,
        num_warps=config.warps,
        enable_fp_fusion=True,
    )
    if num_parts > 1:
        size = num_rows * out_features
        _sum_parts_kernel[(triton.cdiv(size, SUM_BLOCK),)](
            partial, bias, out, size, out_features, num_parts, SUM_BLOCK, enable_fp_fusion=True
        )
    return out


def dequantize(weight: FourBitWeight, dtype: torch.dtype) -> Tensor:
    """Return the weight, (out, in), bit for bit as bitsandbytes dequantizes it."""
    out = weight.words.new_empty(weight.out_features, weight.in_features, dtype=dtype)
    grid = (weight.in_features // GROUP, triton.cdiv(weight.out_features, DEQUANTIZE_BLOCK))
    _dequantize_kernel[grid](
        weight.words,
        weight.scales,
        weight.code,
        out,
        weight.out_features,
        weight.in_features,
        DEQUANTIZE_BLOCK,
        enable_fp_fusion=True,
    )
    return out


@triton.jit(do_not_specialize=["num_rows"])
def _multiply_kernel(
    x,
    words,
    scales,
    values,
    bias,
    out,
    inverse_factor,
    num_rows,
    out_features,
    x_stride,
    num_groups: tl.constexpr,
    block_n: tl.constexpr,
    block_m: tl.constexpr,
    stages: tl.constexpr,
    instructions: tl.constexpr,
):
    """Multiply a tile of the weight (outputs, part of the inputs) with the rows of activations.

    The weight is the left operand: its codes go from shared memory to registers as they are, and from
    there, as 16 bits, to the tensor cores. A block's scale multiplies the block's product.
    """
    m = tl.program_id(0) * block_m + tl.arange(0, block_m)
    n = tl.program_id(1) * block_n + tl.arange(0, block_n)
    part = tl.program_id(2)
    m_mask = (m < num_rows)[None, :]
    n_mask = n < out_features
    k = tl.arange(0, 32)
    x_tile = x + m[None, :] * x_stride + k[:, None]
    acc = tl.zeros((block_n, block_m), tl.float32)
    for i in tl.range(num_groups, num_stages=stages):
        group = part * num_groups + i
        x_group = x_tile + group * 128
        x0 = tl.load(x_group, mask=m_mask, other=0.0)
        x1 = tl.load(x_group + 32, mask=m_mask, other=0.0)
        x2 = tl.load(x_group + 64, mask=m_mask, other=0.0)
        x3 = tl.load(x_group + 96, mask=m_mask, other=0.0)
        scale0 = tl.load(scales + 2 * group * out_features + n, mask=n_mask, other=0.0)
        scale1 = tl.load(scales + (2 * group + 1) * out_features + n, mask=n_mask, other=0.0)
        row = group * out_features + n[:, None]
        if instructions is not None:
            # Two adjacent halves are a word: the operand of the instructions.
            halves = tl.load(words + row * 32 + k[None, :], mask=n_mask[:, None], other=0)
            w0, w1, w2, w3 = tl.inline_asm_elementwise(
                instructions,
                "=r,=r,=r,=r,r",
                [halves],
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
            word = tl.load(words + row * 16 + k[None, :] // 2, mask=n_mask[:, None], other=0)
            word = word >> (4 - 4 * (k[None, :] % 2))
            w0 = tl.load(values + (word & 15))
            w1 = tl.load(values + (word >> 8 & 15))
            w2 = tl.load(values + (word >> 16 & 15))
            w3 = tl.load(values + (word >> 24 & 15))
        acc += tl.dot(w1, x1, tl.dot(w0, x0)) * scale0[:, None]
        acc += tl.dot(w3, x3, tl.dot(w2, x2)) * scale1[:, None]
    acc *= inverse_factor
    if bias is not None:
        acc += tl.load(bias + n, mask=n_mask, other=0.0).to(tl.float32)[:, None]
    out_tile = out + part * num_rows * out_features + m[None, :] * out_features + n[:, None]
    tl.store(out_tile, acc.to(out.dtype.element_ty), mask=m_mask & n_mask[:, None])


@triton.jit(do_not_specialize=["size"])
def _sum_parts_kernel(
    partial, bias, out, size, out_features, num_parts: tl.constexpr, block: tl.constexpr
):
    """Add the parts of the inputs, always in their order."""
    offsets = tl.program_id(0) * block + tl.arange(0, block)
    mask = offsets < size
    acc = tl.load(partial + offsets, mask=mask, other=0.0)
    for part in tl.static_range(1, num_parts):
        acc += tl.load(partial + part * size + offsets, mask=mask, other=0.0)
    if bias is not None:
        acc += tl.load(bias + offsets % out_features, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + offsets, acc.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _dequantize_kernel(words, scales, code, out, out_features, in_features, block_n: tl.constexpr):
    """Dequantise a group of some rows of the weight."""
    group = tl.program_id(0)
    n = tl.program_id(1) * block_n + tl.arange(0, block_n)
    n_mask = n < out_features
    k = tl.arange(0, 32)[None, :]
    word = tl.load(
        words + (group * out_features + n[:, None]) * 16 + k // 2, mask=n_mask[:, None], other=0
    )
    word = word >> (4 - 4 * (k % 2))
    out_tile = out + n[:, None].to(tl.int64) * in_features + group * 128 + k
    for quarter in tl.static_range(4):
        scale = tl.load(
            scales + (2 * group + quarter // 2) * out_features + n, mask=n_mask, other=0.0
        )
        value = tl.load(code + (word >> 8 * quarter & 15)) * scale[:, None]
        tl.store(out_tile + 32 * quarter, value.to(out.dtype.element_ty), mask=n_mask[:, None])
