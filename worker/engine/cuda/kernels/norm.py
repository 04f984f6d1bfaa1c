# ruff: noqa: N803  (Triton writes compile-time constants in capitals)
"""RMS normalization."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from worker.engine.cuda.kernels.common import grid_dependency, launch, launch_options


@triton.jit
def _rms_norm_kernel(
    x,
    weight,
    out,
    eps,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    column_mask = columns < SIZE
    # The weight does not depend on the kernel before.
    weight_row = tl.load(weight + columns, mask=column_mask, other=0.0).to(tl.float32)
    grid_dependency(PDL)
    row = tl.load(x + token * SIZE + columns, mask=column_mask, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(row * row, 0) / SIZE + eps)
    # Rounded before the weight, as in transformers.
    normed = (row * scale).to(out.dtype.element_ty).to(tl.float32)
    tl.store(out + token * SIZE + columns, normed * weight_row, mask=column_mask)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    out = torch.empty_like(x)
    size = x.shape[1]
    block = triton.next_power_of_2(size)
    warps = 4 if block <= 2048 else 8
    launch(
        _rms_norm_kernel, (len(x),),
        x, weight, out, eps, size, block, num_warps=warps, **launch_options(x)
    )  # fmt: skip
    return out
