"""Products of layers of the same input, quantised or not, with the first factors of all adapters."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from worker.engine.cuda import four_bit
from worker.engine.cuda.four_bit import FourBitLinear
from worker.engine.cuda.lora_weights import Expansion, StackedWeights, first_factors
from worker.engine.lora.layers import Projection


class Products(Protocol):
    """Linear layers of the same input, side by side, and the first factors of all adapters there."""

    @property
    def expansion(self) -> Expansion:
        """The second factors."""
        ...

    @property
    def written_out(self) -> int:
        """Bytes of the largest matrix that is written out in 16 bits for a step, and not kept."""
        ...

    def __call__(self, x: Tensor, ops: Any) -> tuple[Tensor, Tensor]:
        """Multiply (tokens, in).

        Returns:
            (tokens, out) of the base, and (tokens, sum of ranks) of the adapters' first factors; if
            there are none, anything. Both may come in as many parts that add up to them, in front.
        """
        ...


def products(projections: Sequence[Projection], dtype: torch.dtype) -> Products:
    """Put layers side by side. What is returned shares no weights of 4 bits with them.

    Args:
        projections: layers without `obstacle`.
        dtype: of the activations.
    """
    if all(type(projection.base) is nn.Linear for projection in projections):
        return StackedWeights(projections)
    return QuantizedWeights(projections, dtype)


def obstacle(layer: nn.Module) -> str | None:
    """Say why a layer cannot be among `products`; None if it can."""
    return None if type(layer) is nn.Linear else four_bit.obstacle(layer)


class QuantizedWeights:
    """A product with weights of 4 bits, or several, and one with the factors A of all adapters."""

    def __init__(self, projections: Sequence[Projection], dtype: torch.dtype) -> None:
        """Arguments as for `products`; a layer, and not every one, may be unquantised."""
        bases: list[Any] = [projection.base for projection in projections]
        self.expansion = Expansion(projections, dtype)
        factors = first_factors(projections)
        self._factors = torch.cat(factors) if factors else None
        # Neighbours of one type are one product; a base has several types where layers were left out.
        self._layers: list[Matrix | FourBitLinear] = []
        for code, run in itertools.groupby(bases, four_bit.code_of):
            layers = list(run)
            self._layers.append(Matrix.join(layers) if code is None else FourBitLinear.join(layers))
        quantised = [layer for layer in self._layers if isinstance(layer, FourBitLinear)]
        elements = max(layer.in_features * layer.out_features for layer in quantised)
        self.written_out = elements * dtype.itemsize

    def __call__(self, x: Tensor, ops: Any) -> tuple[Tensor, Tensor]:
        """As `Products`."""
        del ops
        found = [layer(x) for layer in self._layers]
        product = found[0] if len(found) == 1 else torch.cat(found, dim=-1)
        return product, product if self._factors is None else linear(x, self._factors)


@dataclass(frozen=True)
class Matrix:
    """Linear layers of the same input, side by side, that are not quantised."""

    #: (out, in).
    weight: Tensor
    #: (out,).
    bias: Tensor | None

    @classmethod
    def join(cls, layers: Sequence[Any]) -> Matrix:
        """Make one of `nn.Linear`."""
        weight = torch.cat([layer.weight.detach() for layer in layers])
        if all(layer.bias is None for layer in layers):
            return cls(weight, None)
        biases = [
            weight.new_zeros(layer.out_features) if layer.bias is None else layer.bias.detach()
            for layer in layers
        ]
        return cls(weight, torch.cat(biases))

    def __call__(self, x: Tensor) -> Tensor:
        """Map (tokens, in) to (tokens, out)."""
        return linear(x, self.weight, self.bias)
