"""All adapters in every linear layer at once: each token's row picks its own.

Three ways, all exact, for adapters of any ranks and targets and without a kernel of our own. On a
CPU, where small products cost what they compute, rows of one adapter stand together and get its
factors (`GroupedLinear`), or, where the model is small enough to be held once for each adapter, its
weights (`MergedLinear`). On a GPU, where a step is recorded once and replayed, shapes may not depend
on the mixture (`StackedLinear`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from worker.engine.interface import EngineError
from worker.engine.models.packed_linear import packed

#: Factors A (rank x in) and B (out x rank, scaled) of an adapter in a layer.
Factors = tuple[Tensor, Tensor]
#: Most bytes of weights that are held once for each adapter: about what a processor's cache holds.
MERGED_BYTES = 2**25


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
        self._named: Sequence[int] = ()
        self._masks: dict[tuple[int, ...], Tensor] = {}
        self.runs: list[Run] = []

    def set(self, adapters: Sequence[int], device: torch.device) -> None:
        """Say the adapter of each token by its index."""
        self.point(torch.tensor(adapters, device=device))
        self._named = adapters
        start = 0
        for adapter, run in itertools.groupby(adapters):
            end = start + len(list(run))
            self.runs.append(Run(adapter, start, end))
            start = end

    def point(self, adapters: Tensor) -> None:
        """As `set`, for `StackedLinear` alone: it need not know on the host which they are.

        Args:
            adapters: (tokens,) int64, on the device.
        """
        self._adapters = adapters
        self._named = ()
        self._masks.clear()
        self.runs = []

    def keep(self, tokens: Sequence[int]) -> Tensor:
        """Let only some of the tokens go on; return which: (len(tokens),) int64, on the device."""
        device = self._adapters.device
        self.set([self._named[token] for token in tokens], device)
        return torch.tensor(tokens, dtype=torch.int64, device=device)

    def select(self, tokens: Tensor) -> None:
        """As `keep`, after `point`.

        Args:
            tokens: (kept,) int64, on the device.
        """
        self.point(self._adapters[tokens])

    def mask(self, table: Tensor, ranks: tuple[int, ...]) -> Tensor:
        """Return each token's row of a layer's table; layers of the same ranks share it.

        Args:
            table: (adapters, sum of ranks): 1 where a column belongs to the adapter, else 0.
            ranks: of each adapter in the layer, which say what the table holds.
        """
        if ranks not in self._masks:
            self._masks[ranks] = table[self._adapters]
        return self._masks[ranks]


@dataclass(frozen=True)
class Projection:
    """A linear layer of the base, and the factors of each adapter there; None where it has none."""

    base: nn.Module
    factors: list[Factors | None]


def take_apart(models: dict[str, PeftModel]) -> tuple[Any, dict[str, list[Factors | None]]]:
    """Separate the base from the adapters.

    Args:
        models: by the adapters' names; their bases' tensors are the same memory. It is emptied, so that
            nothing but what is returned holds them.

    Returns:
        the base, and by the name of each layer that has one the factors of every adapter.

    Raises:
        EngineError: an adapter is more than factors beside linear layers.
    """
    found: dict[str, list[Factors | None]] = {}
    base: Any = next(iter(models.values())).get_base_model()
    for i, (name, model) in enumerate(models.items()):
        for path, layer in _adapted(model, name):
            a: Any = layer.lora_A[name].weight
            b: Any = layer.lora_B[name].weight
            row = found.setdefault(path, [None] * len(models))
            row[i] = (a.data, b.data * layer.scaling[name])
    models.clear()
    layers = [(path, module) for path, module in base.named_modules() if _is_lora(module)]
    for path, module in layers:
        parent, _, attribute = path.rpartition(".")
        setattr(base.get_submodule(parent), attribute, module.get_base_layer())
    return base, found


def _adapted(model: PeftModel, name: str) -> Iterator[tuple[str, Any]]:
    """Give the layers of a model that have factors of an adapter, if it has nothing else."""
    for path, module in model.get_base_model().named_modules():
        if isinstance(module, AuxiliaryTrainingWrapper):
            raise EngineError(f"the {name} adapter replaces {path}")
        if not isinstance(module, BaseTunerLayer):
            continue
        layer: Any = module
        if not _is_lora(module) or layer.lora_variant.get(name) or layer.lora_embedding_A:
            raise EngineError(f"the {name} adapter is no plain LoRA in {path}")
        if name in layer.lora_A:
            if layer.lora_B[name].bias is not None:
                raise EngineError(f"the {name} adapter has a bias in {path}")
            yield path, layer


def _is_lora(module: Any) -> bool:
    return isinstance(module, LoraLayer)


class GroupedLinear(nn.Module):
    """Linear layers of the same input; rows get the factors of the adapter that they are for."""

    def __init__(self, projections: Sequence[Projection], rows: Rows) -> None:
        """
        Args:
            projections: layers whose outputs will stand side by side; several must be `nn.Linear`.
            rows: shared by all layers.
        """
        super().__init__()
        self._rows = rows
        self._adapters = [_gather(projections, i) for i in range(len(projections[0].factors))]
        self.base = packed(_join([projection.base for projection in projections]))

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, tokens, in) to (…, tokens, out); tokens are those of `Rows`."""
        found: Tensor = self.base(x)
        out, rows = found.view(-1, found.shape[-1]), x.reshape(-1, x.shape[-1])
        for run in self._rows.runs:
            if (gathered := self._adapters[run.adapter]) is None:
                continue
            a, parts = gathered
            inner = rows[run.start : run.end] @ a
            for columns, ranks, b in parts:
                out[run.start : run.end, columns].addmm_(inner[:, ranks], b)
        return found


#: Columns of the output, columns of the inner product, and B (rank x out) between them.
Part = tuple[slice, slice, Tensor]


def _gather(projections: Sequence[Projection], adapter: int) -> tuple[Tensor, list[Part]] | None:
    """Return an adapter's factors A (in x sum of ranks), and what each part of them leads to."""
    found: list[Tensor] = []
    parts: list[Part] = []
    rank = column = 0
    for projection in projections:
        size = _out(projection.base)
        if pair := projection.factors[adapter]:
            a, b = pair
            found.append(a.T)
            ranks = slice(rank, rank + a.shape[0])
            parts.append((slice(column, column + size), ranks, b.T.contiguous()))
            rank += a.shape[0]
        column += size
    return (torch.cat(found, dim=1).contiguous(), parts) if parts else None


class MergedLinear(nn.Module):
    """Linear layers of the same input, held once for each adapter with its factors multiplied out."""

    def __init__(self, projections: Sequence[Projection], rows: Rows) -> None:
        """Arguments as for `GroupedLinear`; all layers `nn.Linear`."""
        super().__init__()
        self._rows = rows
        joined: Any = _join([projection.base for projection in projections])
        weight, self.bias = joined.weight.detach(), joined.bias
        self._weights = []
        for adapter in range(len(projections[0].factors)):
            merged = weight
            if gathered := _gather(projections, adapter):
                a, parts = gathered
                merged = weight.clone()
                for columns, ranks, b in parts:
                    merged[columns] += (a[:, ranks] @ b).T
            self._weights.append(merged)

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, tokens, in) to (…, tokens, out); tokens are those of `Rows`."""
        runs = self._rows.runs
        if len(runs) == 1:
            return nn.functional.linear(x, self._weights[runs[0].adapter], self.bias)
        rows = x.reshape(-1, x.shape[-1])
        out = rows.new_empty(len(rows), len(self._weights[0]))
        for run in runs:
            part = slice(run.start, run.end)
            torch.mm(rows[part], self._weights[run.adapter].T, out=out[part])
        if self.bias is not None:
            out += self.bias
        return out.view(*x.shape[:-1], out.shape[-1])


class StackedLinear(nn.Module):
    """Linear layers of the same input with all adapters, whose shapes no mixture changes.

    The factors A of all adapters are appended to the weight as further output rows, the factors B
    stand side by side. One product gives [W x, A x]; a mask zeroes the parts of A x that belong to
    other adapters; a second product adds B.
    """

    def __init__(self, projections: Sequence[Projection], rows: Rows) -> None:
        """Arguments as for `GroupedLinear`."""
        super().__init__()
        self._rows = rows
        self._parts: list[tuple[slice, slice, tuple[int, ...]]] = []
        self.tables, self.bs = nn.ParameterList(), nn.ParameterList()
        found = []
        rank = column = 0
        for projection in projections:
            size = _out(projection.base)
            ranks = tuple(0 if pair is None else len(pair[0]) for pair in projection.factors)
            if present := [pair for pair in projection.factors if pair is not None]:
                found += [a for a, _ in present]
                self.bs.append(_constant(torch.cat([b.T for _, b in present])))
                owner = torch.repeat_interleave(torch.arange(len(ranks)), torch.tensor(ranks))
                table = owner[None] == torch.arange(len(ranks))[:, None]
                self.tables.append(_constant(table.to(present[0][0])))
                inner = slice(rank, rank + sum(ranks))
                self._parts.append((slice(column, column + size), inner, ranks))
                rank += sum(ranks)
            column += size
        base: Any = _join([projection.base for projection in projections])
        self._out = column
        self.base: Any = None
        self.bias: Any = None
        if type(base) is nn.Linear:
            self.weight = _constant(torch.cat([base.weight, *found]))
            self.bias = base.bias
        else:  # quantised: its weight is no matrix that rows could be appended to
            self.base = base
            self.weight = _constant(torch.cat(found))

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, tokens, in) to (…, tokens, out); tokens are those of `Rows`."""
        rows = x.reshape(-1, x.shape[-1])
        product = nn.functional.linear(rows, self.weight)
        if self.base is None:
            out, inner = product[:, : self._out], product[:, self._out :]
            if self.bias is not None:
                out += self.bias
        else:
            out, inner = self.base(rows), product
        for (columns, ranks, key), table, b in zip(self._parts, self.tables, self.bs, strict=True):
            out[:, columns].addmm_(inner[:, ranks] * self._rows.mask(table, key), b)
        return out.reshape(*x.shape[:-1], out.shape[-1])


#: A way to add the adapters.
Form = type[GroupedLinear] | type[MergedLinear] | type[StackedLinear]


def form_for(models: Mapping[str, PeftModel]) -> Form:
    """Choose the way that suits models that share a base, and their device."""
    if any(model.device.type != "cpu" for model in models.values()):
        return StackedLinear
    bases: dict[str, Any] = {}
    for model in models.values():
        layers = model.get_base_model().named_modules()
        bases |= {path: m.get_base_layer() for path, m in layers if isinstance(m, LoraLayer)}
    exact = all(type(b) is nn.Linear and b.weight.dtype is torch.float32 for b in bases.values())
    if exact and len(models) * sum(b.weight.nbytes for b in bases.values()) <= MERGED_BYTES:
        return MergedLinear
    return GroupedLinear


def _join(bases: Sequence[nn.Module]) -> nn.Module:
    """Put linear layers of the same input side by side."""
    layers: list[Any] = list(bases)
    if len(layers) == 1:
        found: nn.Module = layers[0]
        return found
    with_bias = any(layer.bias is not None for layer in layers)
    weight = torch.cat([layer.weight.detach() for layer in layers])
    with torch.device("meta"):  # its weight is there already
        joined = nn.Linear(weight.shape[1], weight.shape[0], bias=with_bias)
    joined.weight = _constant(weight)
    if with_bias:
        biases = [
            torch.zeros_like(layer.weight[:, 0]) if layer.bias is None else layer.bias
            for layer in layers
        ]
        joined.bias = _constant(torch.cat(biases))
    return joined


def _out(base: Any) -> int:
    return int(base.out_features)


def _constant(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach().contiguous(), requires_grad=False)
