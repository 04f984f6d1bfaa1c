"""Linear layers whose weights are laid out for the processor once, at the start.

PyTorch's product of a few rows with a plain matrix reaches half of the memory's bandwidth on a CPU.
oneDNN's does better with a weight in blocks of its own choice, which is what PyTorch's compiler uses
when it freezes a model (`torch/_inductor/fx_passes/mkldnn_fusion.py`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

#: Rows that oneDNN lays the weights out for: a full house; it is the better choice for one row too.
ROWS = 64
#: Weights of fewer elements stay in the caches, and the plain product is as fast.
LEAST = 2**18


class PackedLinear(nn.Module):
    """A linear layer, float32, on a CPU."""

    def __init__(self, linear: nn.Linear) -> None:
        """Copy a layer's weight into oneDNN's layout."""
        super().__init__()
        # Not a parameter: the layout is opaque, and nothing but this layer can read it.
        self._weight: Any = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), ROWS)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, in) to (…, out)."""
        found: Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self._weight, self.bias, "none", [], ""
        )
        return found


def packed(layer: nn.Module) -> nn.Module:
    """Return a linear layer with its weight packed, or the layer itself where that gains nothing."""
    if type(layer) is not nn.Linear:
        return layer
    weight = layer.weight
    worth = weight.device.type == "cpu" and weight.numel() >= LEAST
    # The operator is not part of PyTorch's interface: without it all goes on, slower.
    possible = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]  # torch has no types there
    possible = possible and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    if worth and possible and weight.dtype is torch.float32:
        return PackedLinear(layer)
    return layer
