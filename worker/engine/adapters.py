"""All adapters in every linear layer at once: each token's row picks its own.

Two ways, both exact, for adapters of any ranks and targets and without a kernel of our own. On a CPU,
where small products cost what they compute, rows of one adapter stand together and get its factors
(`GroupedLinear`). On a GPU, where a step is recorded once and replayed, shapes may not depend on the
mixture (`StackedLinear`).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from worker.lora.adapter import open_adapter, refusals

#: Factors A (rank x in) and B (out x rank, scaled) of an adapter in a layer.
Factors = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Run:
    """Successive tokens ``start … end - 1`` of a step that are for one adapter."""

    adapter: int
    start: int
    end: int


class Rows:
    """Which adapter each token of the step is for; all layers look here."""

    def __init__(self) -> None:
        self._adapters = torch.zeros(0, dtype=torch.int64)
        self._masks: dict[tuple[int, ...], Tensor] = {}
        self.runs: list[Run] = []

    def set(self, adapters: Sequence[int], device: torch.device) -> None:
        """Say the adapter of each token by its index."""
        self._adapters = torch.tensor(adapters, device=device)
        self._masks.clear()
        self.runs = []
        start = 0
        for adapter, run in itertools.groupby(adapters):
            end = start + len(list(run))
            self.runs.append(Run(adapter, start, end))
            start = end

    def mask(self, table: Tensor, ranks: tuple[int, ...]) -> Tensor:
        """Return each token's row of a layer's table; layers of the same ranks share it.

        Args:
            table: (adapters, sum of ranks): 1 where a column belongs to the adapter, else 0.
            ranks: of each adapter in the layer, which say what the table holds.
        """
        if ranks not in self._masks:
            self._masks[ranks] = table[self._adapters]
        return self._masks[ranks]


class GroupedLinear(nn.Module):
    """A linear layer, and the factors of each adapter for the rows that are for it."""

    def __init__(self, base: nn.Module, factors: Sequence[Factors | None], rows: Rows) -> None:
        """
        Args:
            base: the layer, out x in.
            factors: of each adapter, or None where it has none here.
            rows: shared by all layers.
        """
        super().__init__()
        self.base = base
        self._rows = rows
        self._factors = [
            None if pair is None else (pair[0].T.contiguous(), pair[1].T.contiguous())
            for pair in factors
        ]

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, tokens, in) to (…, tokens, out); tokens are those of `Rows`."""
        found: Tensor = self.base(x)
        out, rows = found.view(-1, found.shape[-1]), x.reshape(-1, x.shape[-1])
        for run in self._rows.runs:
            if pair := self._factors[run.adapter]:
                a, b = pair
                out[run.start : run.end].addmm_(rows[run.start : run.end] @ a, b)
        return found


class StackedLinear(nn.Module):
    """A linear layer with the factors of all adapters, whose shapes no mixture changes.

    The factors A of all adapters are appended to the layer's weight as further output rows, the
    factors B stand side by side. One product gives [W x, A x]; a mask zeroes the parts of A x that
    belong to other adapters; a second product adds B.
    """

    def __init__(self, base: nn.Module, factors: Sequence[Factors | None], rows: Rows) -> None:
        """
        Args:
            base: the layer, out x in; its weight is taken over if it is a plain `nn.Linear`.
            factors: of each adapter, or None where it has none here.
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


def stack(model: PeftModel, names: Sequence[str], rows: Rows, *, static: bool) -> Any:
    """Turn a model with adapters into its base with all of them at once; the model is used up.

    Args:
        model: with all adapters loaded, none of them among `unstackable`.
        names: the adapters, in the order of their indices.
        rows: for all layers.
        static: whether shapes must stay the same whatever the mixture.

    Returns:
        the base model, whose adapted layers are `StackedLinear` if ``static``, else `GroupedLinear`.
    """
    form = StackedLinear if static else GroupedLinear
    base = model.get_base_model()
    adapted = [(name, m) for name, m in base.named_modules() if isinstance(m, LoraLayer)]
    for path, layer in adapted:
        factors: list[Factors | None] = []
        for name in names:
            if name not in layer.lora_A:
                factors.append(None)
                continue
            a: Any = layer.lora_A[name].weight
            b: Any = layer.lora_B[name].weight
            factors.append((a.data, b.data * layer.scaling[name]))
        parent, _, attribute = path.rpartition(".")
        setattr(base.get_submodule(parent), attribute, form(layer.get_base_layer(), factors, rows))
    return base
