# ruff: noqa: N803  (Triton writes what is fixed when a kernel is compiled in capitals)
"""What all kernels share: how they are placed, and how they multiply."""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

#: Whether kernels are placed early (programmatic dependent launch) where the device can do that.
EARLY = True
#: A product and a sum are one operation, whatever Triton's version takes for granted.
FUSED = {"enable_fp_fusion": True}


@triton.jit
def begin(PDL: tl.constexpr):
    """Wait for the kernel before, which has let this one be placed already; let the next one be."""
    if PDL:
        gdc_wait()
        gdc_launch_dependents()


def options(x: Tensor) -> dict[str, bool]:
    """Return how a kernel is launched: from the H100 on, it is placed while the one before still runs."""
    early = EARLY and x.device.type == "cuda" and _capability(x.device) >= (9, 0)
    return FUSED | ({"PDL": True, "launch_pdl": True} if early else {"PDL": False})


@cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def precision(x: Tensor) -> str:
    return "ieee" if x.dtype is torch.float32 else "tf32"
