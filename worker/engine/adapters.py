"""All adapters in every linear layer at once: each token's row picks its own.

The factors A of all adapters are appended to the layer's weight as further output rows, the
factors B, scaled, stand side by side. One product gives [W x, A x]; a mask zeroes the parts of A x
that belong to other adapters; a second product adds B. No sorting, no custom kernel, the same
shapes whatever the mixture, for adapters of any ranks and targets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from worker.lora.adapter import open_adapter, refusals


class Rows:
    """Which adapter each token of the step is for; all layers look here."""

    def __init__(self) -> None:
        self._adapters = torch.zeros(0, dtype=torch.int64)
        self._masks: dict[tuple[int, ...], Tensor] = {}

    def set(self, adapters: Tensor) -> None:
        """Say the adapters' indices: (tokens,), int64."""
        self._adapters = adapters
        self._masks.clear()

    def mask(self, table: Tensor, ranks: tuple[int, ...]) -> Tensor:
        """Return each token's row of a layer's table; layers of the same ranks share it.

        Args:
            table: (adapters, sum of ranks): 1 where a column belongs to the adapter, else 0.
            ranks: of each adapter in the layer, which say what the table holds.
        """
        if ranks not in self._masks:
            self._masks[ranks] = table[self._adapters]
        return self._masks[ranks]


class StackedLinear(nn.Module):
    """A linear layer with the factors of all adapters."""

    def __init__(
        self, base: nn.Module, factors: Sequence[tuple[Tensor, Tensor] | None], rows: Rows
    ) -> None:
        """
        Args:
            base: the layer, out x in; its weight is taken over if it is a plain `nn.Linear`.
            factors: A (rank x in) and B (out x rank, scaled) of each adapter, or None.
            rows: shared by all layers.
        """
        super().__init__()
        present = [pair for pair in factors if pair is not None]
        self._rows = rows
        self._ranks = tuple(0 if pair is None else pair[0].shape[0] for pair in factors)
        a = torch.cat([pair[0] for pair in present])
        # sum of ranks x out
        self.b = nn.Parameter(torch.cat([pair[1].T for pair in present]).contiguous(), False)
        owner = torch.repeat_interleave(torch.arange(len(factors)), torch.tensor(self._ranks))
        table = owner[None] == torch.arange(len(factors))[:, None]
        self.register_buffer("table", table.to(a), persistent=False)
        self.fused = type(base) is nn.Linear
        if self.fused:
            weight: Any = base.weight
            self.out = weight.shape[0]
            self.weight = nn.Parameter(torch.cat([weight, a]), False)
            self.bias: Any = base.bias
        else:  # quantised: its weight is no matrix that rows could be appended to
            self.base = base
            self.a = nn.Parameter(a, False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, tokens, in) to (…, tokens, out); tokens are those of `Rows`."""
        mask = self._rows.mask(self.table, self._ranks)  # type: ignore[arg-type]  # a buffer
        if self.fused:
            both = nn.functional.linear(x, self.weight)
            out, inner = both[..., : self.out], both[..., self.out :]
            if self.bias is not None:
                out = out + self.bias
        else:
            out, inner = self.base(x), nn.functional.linear(x, self.a)
        shape = out.shape
        found = torch.addmm(
            out.reshape(-1, shape[-1]), (inner * mask).reshape(-1, self.b.shape[0]), self.b
        )
        return found.view(shape)


def unstackable(folders: Mapping[str, Path]) -> list[str]:
    """Say why adapters cannot be stacked; empty if they can.

    Args:
        folders: the adapters' folders by their names.

    Raises:
        LoraError: one is missing or damaged.
    """
    found = []
    for name, folder in folders.items():
        adapter = open_adapter(folder)
        reasons = refusals(adapter.config, adapter.tensors.entries)
        found += [f"the {name} adapter: {reason}" for reason in reasons]
    return found


def stack(model: PeftModel, names: Sequence[str], rows: Rows) -> Any:
    """Turn a model with adapters into its base with stacked ones; the model is used up.

    Args:
        model: with all adapters loaded, none of them among `unstackable`.
        names: the adapters, in the order of their indices.
        rows: for all layers.

    Returns:
        the base model, whose adapted layers are `StackedLinear`.
    """
    base = model.get_base_model()
    adapted = [(name, m) for name, m in base.named_modules() if isinstance(m, LoraLayer)]
    for path, layer in adapted:
        factors: list[tuple[Tensor, Tensor] | None] = []
        for name in names:
            if name not in layer.lora_A:
                factors.append(None)
                continue
            a: Any = layer.lora_A[name].weight
            b: Any = layer.lora_B[name].weight
            factors.append((a.data, b.data * layer.scaling[name]))
        parent, _, attribute = path.rpartition(".")
        stacked = StackedLinear(layer.get_base_layer(), factors, rows)
        setattr(base.get_submodule(parent), attribute, stacked)
    return base
