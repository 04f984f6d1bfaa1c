"""Copies from the host to a device that do not wait for what the device has still to compute."""

from __future__ import annotations

import torch
from torch import Tensor


def pinned(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the host in memory that a CUDA device can copy from by itself.

    PyTorch reuses pinned memory only after copies from it are done.
    """
    return tensor.pin_memory() if device.type == "cuda" else tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor of the host to a device.

    From memory that is not pinned, PyTorch copies only after all steps that were launched before, and the host waits.
    """
    return pinned(tensor, device).to(device, non_blocking=True)
