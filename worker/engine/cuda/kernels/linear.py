# ruff: noqa: N803  (Triton writes compile-time constants in capitals)
"""Products of few rows with the smaller matrices, where cuBLAS leaves bandwidth unused."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from worker.engine.cuda.kernels.common import (
    grid_dependency,
    input_precision,
    launch,
    launch_options,
)

#: Output columns, inputs of an iteration, parts (split k), warps and stages.
CONFIG = (64, 128, 2, 4, 4)
#: Maximum number of tokens, and of elements of the matrix, for `small_batch_linear`.
MAX_TOKENS, MAX_ELEMENTS = 16, 2**26


@triton.jit(do_not_specialize=["num_tokens"])  # one variant for all numbers
def _linear_kernel(
    x,
    x_stride,
    weight,
    out,
    part_stride,
    num_tokens,
    OUT: tl.constexpr,
    IN: tl.constexpr,
    IN_PER_PART: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    PDL: tl.constexpr,
):
    grid_dependency(PDL)
    part = tl.program_id(1)
    tokens = tl.arange(0, BLOCK_M)
    token_mask = tokens < num_tokens
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    column_mask = columns < OUT
    k = tl.arange(0, BLOCK_K)
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    first = part * IN_PER_PART
    for start in range(first, min(first + IN_PER_PART, IN), BLOCK_K):
        k_mask = start + k < IN
        x_tile = tl.load(
            x + tokens[:, None] * x_stride + start + k[None, :],
            mask=token_mask[:, None] & k_mask[None, :],
            other=0.0,
        )
        weight_tile = tl.load(
            weight + columns[None, :].to(tl.int64) * IN + start + k[:, None],
            mask=column_mask[None, :] & k_mask[:, None],
            other=0.0,
        )
        acc = tl.dot(x_tile, weight_tile, acc, input_precision=PRECISION)
    out_offsets = out + part * part_stride + tokens[:, None] * OUT + columns[None, :]
    tl.store(out_offsets, acc, mask=token_mask[:, None] & column_mask[None, :])


def use_small_batch_linear(x: Tensor, weight: Tensor) -> bool:
    return len(x) <= MAX_TOKENS and weight.numel() <= MAX_ELEMENTS


def small_batch_linear(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply few rows with a matrix, in parts whose sum is the product.

    cuBLAS reaches two thirds of the memory bandwidth with the smaller matrices of a 7B model.

    Args:
        x: (tokens, in), at most `MAX_TOKENS`.
        weight: (out, in), of the same dtype: float32, bfloat16 or float16.

    Returns:
        (parts, tokens, out) float32.
    """
    (num_tokens, in_features), out_features = x.shape, len(weight)
    block_n, block_k, num_parts, warps, stages = CONFIG
    if x.dtype is torch.float32:
        block_k, stages = 32, 2
    in_per_part = triton.cdiv(triton.cdiv(in_features, block_k), num_parts) * block_k
    out = x.new_empty(num_parts, num_tokens, out_features, dtype=torch.float32)
    launch(
        _linear_kernel, (triton.cdiv(out_features, block_n), num_parts),
        x, x.stride(0), weight, out, out.stride(0), num_tokens,
        OUT=out_features, IN=in_features, IN_PER_PART=in_per_part,
        BLOCK_M=max(16, triton.next_power_of_2(num_tokens)), BLOCK_N=block_n, BLOCK_K=block_k,
        PRECISION=input_precision(x), num_warps=warps, num_stages=stages, **launch_options(out),
    )  # fmt: skip
    return out
