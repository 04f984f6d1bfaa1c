"""Fused projections of 16 or 4 bits, together with the factors A of all adapters."""

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
from worker.engine.cuda.lora_weights import LoRABWeights, StackedProjections, stack_lora_a
from worker.engine.lora.factors import Projection


class FusedProjections(Protocol):
    """Linear layers that read the same input, side by side, and the factors A of all adapters there."""

    @property
    def lora_b(self) -> LoRABWeights:
        """The factors B of all adapters."""
        ...

    def __call__(self, x: Tensor, ops: Any) -> tuple[Tensor, Tensor]:
        """Multiply (tokens, in).

        Returns:
            the base's output, (tokens, out), and that of the adapters' factors A, (tokens, sum of ranks);
            the latter is arbitrary if there are none. Both may have a leading dimension of parts, whose
            sum is the result.
        """
        ...


def fuse_projections(projections: Sequence[Projection], dtype: torch.dtype) -> FusedProjections:
    """Fuse layers. The result shares no weights of 4 bits with them.

    Args:
        projections: layers for which `unsupported_reason` returns None.
        dtype: of the activations.
    """
    if all(type(projection.base) is nn.Linear for projection in projections):
        return StackedProjections(projections)
    return QuantizedProjections(projections, dtype)


def unsupported_reason(layer: nn.Module) -> str | None:
    """Return why a layer cannot be one of `fuse_projections`; None if it can."""
    return None if type(layer) is nn.Linear else four_bit.unsupported_reason(layer)


class QuantizedProjections:
    """Products with weights of 4 bits, and one with the factors A of all adapters in 16 bits."""

    def __init__(self, projections: Sequence[Projection], dtype: torch.dtype) -> None:
        """
        Args:
            projections: as for `fuse_projections`; some, but not all, may be unquantized.
            dtype: of the activations.
        """
        bases: list[Any] = [projection.base for projection in projections]
        self.lora_b = LoRABWeights(projections, dtype)
        lora_a = stack_lora_a(projections)
        self._lora_a = torch.cat(lora_a) if lora_a else None
        # Neighbours of one type are one product. A base has several types where quantisation skipped
        # layers.
        self._layers: list[DenseLinear | FourBitLinear] = []
        for code, run in itertools.groupby(bases, four_bit.code_of):
            layers = list(run)
            fused = DenseLinear.fuse(layers) if code is None else FourBitLinear.fuse(layers)
            self._layers.append(fused)

    def __call__(self, x: Tensor, ops: Any) -> tuple[Tensor, Tensor]:
        del ops
        outputs = [layer(x) for layer in self._layers]
        product = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)
        return product, product if self._lora_a is None else linear(x, self._lora_a)


@dataclass(frozen=True)
class DenseLinear:
    """Fused linear layers that are not quantized."""

    #: (out, in).
    weight: Tensor
    #: (out,).
    bias: Tensor | None

    @classmethod
    def fuse(cls, layers: Sequence[Any]) -> DenseLinear:
        """Fuse `nn.Linear` layers."""
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
