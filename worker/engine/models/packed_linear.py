"""Linear layers with weights in oneDNN's blocked layout, for few rows on a CPU.

PyTorch's product of a few rows with a plain matrix reaches half of the memory bandwidth on a CPU. oneDNN
does better with weights in a layout of its own choice, which PyTorch's compiler uses when it freezes a
model (`torch/_inductor/fx_passes/mkldnn_fusion.py`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

#: Batch size that oneDNN chooses the layout for: a full batch. It suits a single row, too.
PACKED_BATCH_SIZE = 64
#: Smaller weights stay in the caches, where the plain product is as fast.
MIN_ELEMENTS = 2**18


class PackedLinear(nn.Module):
    """A float32 linear layer on a CPU."""

    def __init__(self, linear: nn.Linear) -> None:
        """Copy a layer's weight into oneDNN's layout."""
        super().__init__()
        weight = linear.weight.detach()
        # Not a parameter: the layout is opaque, and only this layer can read it.
        self._weight: Any = torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_BATCH_SIZE)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, in) to (…, out)."""
        rows = x.flatten(end_dim=-2)
        padded = padded_rows(len(rows))
        if padded != len(rows):
            rows = torch.cat((rows, rows.new_zeros(padded - len(rows), rows.shape[-1])))
        output: Tensor = torch.ops.mkldnn._linear_pointwise(
            rows, self._weight, self.bias, "none", [], ""
        )
        return output[: x.shape[:-1].numel()].view(*x.shape[:-1], -1)


def padded_rows(rows: int) -> int:
    """Return how many rows are computed for a number of rows.

    oneDNN compiles a kernel for each number, and keeps the last 1,024 of them for all layers, which take 1 MB each.
    Above a full batch, which prompts reach with any number, there are few: sixteenths of the next power of two, for
    which at most an eighth is computed in vain.
    """
    if rows <= PACKED_BATCH_SIZE:
        return rows
    step = 1 << (rows - 1).bit_length() - 4
    return -(-rows // step) * step


def pack_linear(layer: nn.Module) -> nn.Module:
    """Return a linear layer with its weight packed, or the layer itself where packing gains nothing."""
    if type(layer) is not nn.Linear:
        return layer
    weight = layer.weight
    is_large = weight.device.type == "cpu" and weight.numel() >= MIN_ELEMENTS
    # The operator is not part of PyTorch's public interface; without it, products are slower.
    is_available = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]  # torch has no types there
    is_available = is_available and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    if is_large and is_available and weight.dtype is torch.float32:
        return PackedLinear(layer)
    return layer
