"""Linear layers of the same input with all adapters, as the fused kernels want them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from worker.engine.lora.layers import Projection

#: Ranks are filled up to multiples of so many: tensor cores take no fewer, and what begins there can be
#: read in large pieces.
ALIGNED = 16


@dataclass(frozen=True)
class Part:
    """What one adapter adds to one projection."""

    adapter: int
    #: Columns of the inner product.
    ranks: slice
    #: Columns of the output.
    columns: slice
    #: (ranks, columns), scaled.
    b: Tensor


class Expansion:
    """The second factors of all adapters in some layers.

    A table says for each projection and adapter which columns of the inner product are the adapter's,
    how many, and where its factor begins.
    """

    def __init__(self, projections: Sequence[Projection], dtype: torch.dtype) -> None:
        """
        Args:
            projections: layers whose outputs stand side by side.
            dtype: of the factors.
        """
        self.adapters = len(projections[0].factors)
        self.out = sum(_out(p.base) for p in projections)
        factors: list[Tensor] = []
        table: list[list[list[int]]] = []
        parts: list[tuple[int, Part]] = []
        place = rank = first = 0
        largest = 1
        for projection in projections:
            size = _out(projection.base)
            columns = slice(first, first + size)
            first += size
            table.append([])
            for adapter, pair in enumerate(projection.factors):
                if pair is None:
                    table[-1].append([0, 0, 0, 0])
                    continue
                b = _padded(pair[1].T)
                table[-1].append([rank, len(b), place, 0])
                factors.append(b.flatten())
                parts.append((place, Part(adapter, slice(rank, rank + len(b)), columns, b)))
                rank += len(b)
                place += b.numel()
                # Where the next one begins, so that it is read 16 bytes at a time.
                if odd := -place % ALIGNED:
                    factors.append(b.new_zeros(odd))
                    place += odd
                largest = max(largest, len(b))
        weight: Any = projections[0].base.weight
        #: Of the inner product.
        self.rank = rank
        #: Ranks of a turn of the kernels' loop.
        self.ranks = min(64, max(16, 1 << (largest - 1).bit_length()))
        self.b = torch.cat(factors) if factors else weight.new_zeros(1, dtype=dtype)
        self.parts = [
            replace(part, b=self.b[at : at + part.b.numel()].view(part.b.shape))
            for at, part in parts
        ]
        #: (projections, adapters, 4) int32: first column and number of columns of the inner product,
        #: place in ``b``, and nothing; all multiples of `ALIGNED`.
        self.table = torch.tensor(table, dtype=torch.int32, device=weight.device)


class StackedWeights:
    """One product gives [W x, A x] for the factors A of all adapters."""

    written_out = 0

    def __init__(self, projections: Sequence[Projection]) -> None:
        """
        Args:
            projections: layers whose outputs stand side by side, none quantised.
        """
        sizes = [_out(p.base) for p in projections]
        bases: list[Any] = [p.base for p in projections]
        self.expansion = Expansion(projections, bases[0].weight.dtype)
        self._out = sum(sizes)
        weights = [base.weight.detach() for base in bases]
        self._weight = torch.cat([*weights, *first_factors(projections)])
        self._bias: Tensor | None = None
        if any(base.bias is not None for base in bases):
            self._bias = self._weight.new_zeros(len(self._weight))
            column = 0
            for base in bases:
                if base.bias is not None:
                    self._bias[column : column + base.out_features] = base.bias.detach()
                column += base.out_features

    def __call__(self, x: Tensor, ops: Any) -> tuple[Tensor, Tensor]:
        """As `worker.engine.cuda.projections.Products`."""
        if self._bias is None and ops.few(x, self._weight):
            product = ops.linear(x, self._weight)
        else:
            product = linear(x, self._weight, self._bias)
        inner = product[..., self._out :] if self.expansion.rank else product
        return product[..., : self._out], inner


def first_factors(projections: Sequence[Projection]) -> list[Tensor]:
    """Return the factors A of all adapters as `Expansion` counts their ranks, (ranks, in) each."""
    return [_padded(pair[0]) for p in projections for pair in p.factors if pair is not None]


def _padded(factor: Tensor) -> Tensor:
    """Append zeros to a factor's ranks, (ranks, size), up to a multiple of `ALIGNED`."""
    odd = -len(factor) % ALIGNED
    return torch.cat([factor, factor.new_zeros(odd, factor.shape[1])]).contiguous()


def _out(base: Any) -> int:
    return int(base.out_features)
