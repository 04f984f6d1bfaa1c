# ruff: noqa: N803  (Triton writes compile-time constants in capitals)
"""Launches kernels; launch options and precision of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

#: Whether to use programmatic dependent launch (PDL) where the device supports it.
USE_PDL = True
#: Fuse multiplications and additions, whatever the default of Triton's version is.
FUSED_MULTIPLY_ADD = {"enable_fp_fusion": True}


@triton.jit
def grid_dependency(PDL: tl.constexpr):
    """With PDL, wait for the kernel before this one, and let the kernel after it be scheduled.

    What the kernel before does not write, such as weights and the step's input, may be loaded earlier: then it
    arrives while that kernel still runs. The wait must come before any return: kernels further on rely on it.
    """
    if PDL:
        gdc_wait()
        gdc_launch_dependents()


def launch(kernel: Any, grid: Sequence[int], *arguments: Any, **options: Any) -> None:
    """Launch a kernel. If its first argument is a tensor of the meta device, compile it, and launch nothing.

    A launch with the same sizes and dtypes then finds it compiled.
    """
    if arguments[0].device.type == "meta":
        kernel.warmup(*arguments, grid=grid, **options)
    else:
        kernel[grid](*arguments, **options)


def launch_options(x: Tensor) -> dict[str, bool]:
    """Return launch options. From the H100 on, a kernel is scheduled while the one before still runs."""
    pdl = USE_PDL and x.device.type in ("cuda", "meta") and _capability(x.device) >= (9, 0)
    return FUSED_MULTIPLY_ADD | ({"PDL": True, "launch_pdl": True} if pdl else {"PDL": False})


@cache
def _capability(device: torch.device) -> tuple[int, int]:
    """Return a device's compute capability: the current CUDA device's for the meta device."""
    return torch.cuda.get_device_capability(None if device.type == "meta" else device)


def input_precision(x: Tensor) -> str:
    """Return the precision of `tl.dot` for a dtype: float32 products are exact."""
    return "ieee" if x.dtype is torch.float32 else "tf32"
