"""Linear layers of the same input with all adapters, as the fused kernels want them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from worker.engine.adapters import Projection


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
    """The second factors of all adapters in some layers, and which columns they go to.

    The columns of the output are cut into tiles. For each tile and adapter a table says which columns
    of the inner product are the adapter's, how many, and where its factor for the tile begins.
    """

    def __init__(
        self, projections: Sequence[Projection], edges: Sequence[int], columns: int
    ) -> None:
        """
        Args:
            projections: layers whose outputs stand side by side.
            edges: columns where tiles begin anew: multiples of these widths, one for each projection.
            columns: the most columns of a tile, a power of two.
        """
        self.columns = columns
        self.adapters = len(projections[0].factors)
        self.out = sum(_out(p.base) for p in projections)
        factors: list[Tensor] = []
        tiles: list[list[list[int]]] = []
        parts: list[tuple[int, Part]] = []
        place = rank = first = 0
        largest = 1
        for projection, edge in zip(projections, edges, strict=True):
            size = _out(projection.base)
            found = []
            for adapter, pair in enumerate(projection.factors):
                if pair is None:
                    found.append((0, 0, 0))
                    continue
                a, b = pair
                found.append((rank, len(a), place))
                factors.append(b.T.contiguous().flatten())
                columns_ = slice(first, first + size)
                parts.append((place, Part(adapter, slice(rank, rank + len(a)), columns_, b.T)))
                rank += len(a)
                place += b.numel()
                largest = max(largest, len(a))
            for start in range(0, size, edge):
                tiles += [
                    [[r, n, at + column, size] for r, n, at in found]
                    for column in range(start, min(start + edge, size), columns)
                ]
            first += size
        weight: Any = projections[0].base.weight
        #: Of the inner product.
        self.rank = rank
        #: Ranks of a turn of the kernels' loop.
        self.ranks = min(64, max(16, 1 << (largest - 1).bit_length()))
        self.b = torch.cat(factors) if factors else weight.new_zeros(1)
        self.parts = [
            replace(part, b=self.b[at : at + part.b.numel()].view(part.b.shape))
            for at, part in parts
        ]
        #: (tiles, adapters, 4) int32: first column and number of columns of the inner product, place in
        #: ``b``, and how far its rows are apart.
        self.tiles = torch.tensor(tiles, dtype=torch.int32, device=weight.device)


class StackedWeights:
    """One product gives [W x, A x] for the factors A of all adapters."""

    def __init__(
        self, projections: Sequence[Projection], columns: int, edges: Sequence[int] | None = None
    ) -> None:
        """Arguments as for `Expansion`; a tile ends with its projection if no edges are given."""
        sizes = [_out(p.base) for p in projections]
        self.expansion = Expansion(projections, edges or sizes, columns)
        inner = [pair[0] for p in projections for pair in p.factors if pair is not None]
        bases: list[Any] = [p.base for p in projections]
        self._out = sum(sizes)
        self._weight = torch.cat([*(base.weight.detach() for base in bases), *inner])
        self._bias: Tensor | None = None
        if any(base.bias is not None for base in bases):
            self._bias = self._weight.new_zeros(len(self._weight))
            column = 0
            for base in bases:
                if base.bias is not None:
                    self._bias[column : column + base.out_features] = base.bias.detach()
                column += base.out_features

    def __call__(self, x: Tensor, ops: Any) -> tuple[Tensor, Tensor]:
        """Multiply (tokens, in).

        Returns:
            (tokens, out) of the base, and (tokens, sum of ranks) of the adapters' first factors; if
            there are none, anything. Both may come in parts that add up to them, in front.
        """
        if self._bias is None and ops.few(x, self._weight):
            product = ops.linear(x, self._weight)
        else:
            product = linear(x, self._weight, self._bias)
        inner = product[..., self._out :] if self.expansion.rank else product
        return product[..., : self._out], inner


def _out(base: Any) -> int:
    return int(base.out_features)
