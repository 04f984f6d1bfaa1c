# ruff: noqa: N803  (Triton writes compile-time constants in capitals)
"""SwiGLU of gate and up projections with their adapters."""

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

TILE_SIZES: TileSizes = ((16, 16, 64, 4), (512, 32, 128, 4), (math.inf, 64, 64, 4))


@triton.jit(do_not_specialize=["num_tokens"])  # one variant for all numbers
def _silu_and_mul_kernel(
    # As in `kernels.lora`, for gate and up side by side.
    product,
    product_stride,
    lora_a_output,
    lora_a_stride,
    part_stride,
    # (tokens, out).
    out,
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
    offsets = tokens[:, None] * product_stride + tile * BLOCK_N + columns[None, :]
    ids = tl.load(adapter_ids + tokens, mask=token_mask, other=-1)
    grid_dependency(PDL)
    gate = load_sum(product, offsets, part_stride, mask, NUM_PARTS)
    up = load_sum(product, SIZE + offsets, part_stride, mask, NUM_PARTS)
    lora_gate = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    lora_up = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    first_adapter, last_adapter = adapter_range(ids, NUM_ADAPTERS)
    for adapter in range(first_adapter, last_adapter + 1):
        is_adapter = ids == adapter
        gate_entry = table + adapter * 4
        up_entry = gate_entry + NUM_ADAPTERS * 4
        gate_start, gate_rank, gate_offset = load_entry(gate_entry)
        up_start, up_rank, up_offset = load_entry(up_entry)
        b_columns = tile * BLOCK_N + columns
        # Both are loaded before either is multiplied: one wait in place of two.
        for r in range(0, tl.maximum(gate_rank, up_rank), BLOCK_R):
            gate_a = load_a_output(
                lora_a_output, lora_a_stride, part_stride, gate_start, gate_rank, r, tokens,
                is_adapter, NUM_PARTS, BLOCK_R,
            )  # fmt: skip
            up_a = load_a_output(
                lora_a_output, lora_a_stride, part_stride, up_start, up_rank, r, tokens,
                is_adapter, NUM_PARTS, BLOCK_R,
            )  # fmt: skip
            gate_b = load_b(b, gate_offset, SIZE, gate_rank, r, b_columns, column_mask, BLOCK_R)
            up_b = load_b(b, up_offset, SIZE, up_rank, r, b_columns, column_mask, BLOCK_R)
            lora_gate = tl.dot(
                gate_a.to(gate_b.dtype), gate_b, lora_gate, input_precision=PRECISION
            )
            lora_up = tl.dot(up_a.to(gate_b.dtype), up_b, lora_up, input_precision=PRECISION)
    gate += lora_gate
    up += lora_up
    gate = gate.to(out.dtype.element_ty).to(tl.float32)
    up = up.to(out.dtype.element_ty).to(tl.float32)
    gate = (gate * tl.sigmoid(gate)).to(out.dtype.element_ty).to(tl.float32)
    out_offsets = tokens[:, None] * SIZE + tile * BLOCK_N + columns[None, :]
    tl.store(out + out_offsets, gate * up, mask=mask)


def silu_and_mul(
    product: Tensor, lora_a_output: Tensor, lora_b: LoRABWeights, adapter_ids: Tensor
) -> Tensor:
    num_tokens, size = product.shape[-2], lora_b.out_features // 2
    num_parts, part_stride = parts_of(product)
    out = lora_b.b.new_empty(num_tokens, size)
    block_m, block_n, warps = tile_size(TILE_SIZES, num_tokens)
    grid = (triton.cdiv(size, block_n), triton.cdiv(num_tokens, block_m))
    launch(
        _silu_and_mul_kernel, grid,
        product, product.stride(-2), lora_a_output, lora_a_output.stride(-2), part_stride, out,
        lora_b.b, lora_b.table, adapter_ids, num_tokens,
        SIZE=size, NUM_ADAPTERS=lora_b.num_adapters, NUM_PARTS=num_parts,
        BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_R=lora_b.block_rank,
        PRECISION=input_precision(out), num_warps=warps, num_stages=1, **launch_options(out),
    )  # fmt: skip
    return out
