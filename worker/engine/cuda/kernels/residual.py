# ruff: noqa: N803  (Triton writes compile-time constants in capitals)
"""Adds a projection with its adapters to the residual."""

from __future__ import annotations

import math

import triton
import triton.language as tl
from torch import Tensor

from worker.engine.cuda.kernels.common import (
    grid_dependency,
    input_precision,
    launch,
    launch_options,
)
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

TILE_SIZES: TileSizes = ((512, 16, 128, 4), (math.inf, 64, 64, 4))


@triton.jit(do_not_specialize=["num_tokens"])  # one variant for all numbers
def _add_residual_kernel(
    # (tokens, out); read and written.
    x,
    # As in `kernels.lora`.
    product,
    product_stride,
    lora_a_output,
    lora_a_stride,
    part_stride,
    b,
    table,
    adapter_ids,
    num_tokens,
    SIZE: tl.constexpr,
    NUM_ADAPTERS: tl.constexpr,
    NUM_PARTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
    PRECISION: tl.constexpr,
    PDL: tl.constexpr,
):
    tile = tl.program_id(0)
    tokens = (tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    token_mask = tokens < num_tokens
    columns = tl.arange(0, BLOCK_N)
    column_mask = tile * BLOCK_N + columns < SIZE
    mask = token_mask[:, None] & column_mask[None, :]
    offsets = tile * BLOCK_N + columns[None, :]
    ids = tl.load(adapter_ids + tokens, mask=token_mask, other=-1)
    grid_dependency(PDL)
    acc = load_sum(
        product, tokens[:, None] * product_stride + offsets, part_stride, mask, NUM_PARTS
    )
    lora = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    first_adapter, last_adapter = adapter_range(ids, NUM_ADAPTERS)
    for adapter in range(first_adapter, last_adapter + 1):
        is_adapter = ids == adapter
        start, rank, offset = load_entry(table + adapter * 4)
        offset += tile * BLOCK_N
        for r in range(0, rank, BLOCK_R):
            a_output = load_a_output(
                lora_a_output, lora_a_stride, part_stride, start, rank, r, tokens, is_adapter,
                NUM_PARTS, BLOCK_R,
            )  # fmt: skip
            factor = load_b(b, offset, SIZE, rank, r, columns, column_mask, BLOCK_R)
            lora = tl.dot(a_output.to(factor.dtype), factor, lora, input_precision=PRECISION)
    acc += lora
    residual = tl.load(x + tokens[:, None] * SIZE + offsets, mask=mask, other=0.0).to(tl.float32)
    acc = residual + acc.to(x.dtype.element_ty).to(tl.float32)
    tl.store(x + tokens[:, None] * SIZE + offsets, acc, mask=mask)


def add_residual(
    x: Tensor, product: Tensor, lora_a_output: Tensor, lora_b: LoRABWeights, adapter_ids: Tensor
) -> Tensor:
    num_tokens, size = x.shape
    num_parts, part_stride = parts_of(product)
    block_m, block_n, warps = tile_size(TILE_SIZES, num_tokens)
    grid = (triton.cdiv(size, block_n), triton.cdiv(num_tokens, block_m))
    launch(
        _add_residual_kernel, grid,
        x, product, product.stride(-2), lora_a_output, lora_a_output.stride(-2), part_stride,
        lora_b.b, lora_b.table, adapter_ids, num_tokens,
        SIZE=size, NUM_ADAPTERS=lora_b.num_adapters, NUM_PARTS=num_parts,
        BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_R=lora_b.block_rank,
        PRECISION=input_precision(x), num_warps=warps, num_stages=1, **launch_options(x),
    )  # fmt: skip
    return x
