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
#: Weights that are smaller stay in the caches, and the plain product is as fast.
LEAST = 2**18


def packable(weight: Tensor) -> bool:
    """Whether a weight (out x in) is worth packing, and can be."""
    return (
        weight.device.type == "cpu"
        and weight.dtype is torch.float32
        and weight.numel() >= LEAST
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


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


def pack(model: nn.Module) -> None:
    """Replace the linear layers of a model that are worth it; each one's old weight goes at once.

    A weight that another module shares (the embedding, as a rule) stays as it is, since it would
    be held twice.
    """
    owners: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    for path, module in list(model.named_modules()):
        if type(module) is nn.Linear and owners[id(module.weight)] == 1 and packable(module.weight):
            parent, _, attribute = path.rpartition(".")
            setattr(model.get_submodule(parent), attribute, PackedLinear(module))
