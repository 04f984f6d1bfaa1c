# ruff: noqa: N803  (Triton writes what is fixed when a kernel is compiled in capitals)
"""Products of a few rows with the smaller matrices, where cuBLAS leaves bandwidth unused."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from worker.engine.cuda.kernels.common import begin, options, precision

#: Columns, steps along the input, parts, warps and stages of `linear`.
LINEAR = (64, 128, 2, 4, 4)
#: The most tokens of a step whose products are `linear`'s, of matrices of at most so many elements.
FEW_ROWS, SMALL = 16, 2**26


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
    begin(PDL)
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
        number, size, each, max(16, triton.next_power_of_2(count)), block_n, block_k, precision(x),
        num_warps=warps, num_stages=stages, **options(out),
    )  # fmt: skip
    return out
