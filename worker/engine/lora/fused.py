"""Fuses linear layers that read the same input, and their LoRA factors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from worker.engine.lora.factors import Projection


class FactorPart(NamedTuple):
    """One projection's part of an adapter's fused factors."""

    #: Columns of the fused output.
    columns: slice
    #: Columns of ``x @ a``.
    ranks: slice
    #: (rank, out), scaled.
    b: Tensor


class FusedFactors(NamedTuple):
    """An adapter's factors in fused projections."""

    #: The factors A side by side, (in, sum of ranks).
    a: Tensor
    parts: list[FactorPart]


def fuse_factors(projections: Sequence[Projection], adapter_id: int) -> FusedFactors | None:
    """Return an adapter's fused factors; None if it has none in any of the projections."""
    lora_a: list[Tensor] = []
    parts: list[FactorPart] = []
    rank = column = 0
    for projection in projections:
        out_features = projection.out_features
        if factors := projection.factors[adapter_id]:
            a, b = factors
            lora_a.append(a.T)
            columns = slice(column, column + out_features)
            ranks = slice(rank, rank + a.shape[0])
            parts.append(FactorPart(columns, ranks, b.T.contiguous()))
            rank += a.shape[0]
        column += out_features
    return FusedFactors(torch.cat(lora_a, dim=1).contiguous(), parts) if parts else None


def fuse_bases(projections: Sequence[Projection]) -> nn.Module:
    """Return one linear layer with the projections' outputs side by side.

    Args:
        projections: they read the same input; several must be `nn.Linear`.
    """
    layers: list[Any] = [projection.base for projection in projections]
    if len(layers) == 1:
        only: nn.Module = layers[0]
        return only
    has_bias = any(layer.bias is not None for layer in layers)
    weight = torch.cat([layer.weight.detach() for layer in layers])
    with torch.device("meta"):  # the weight exists already
        fused = nn.Linear(weight.shape[1], weight.shape[0], bias=has_bias)
    fused.weight = constant(weight)
    if has_bias:
        biases = [
            torch.zeros_like(layer.weight[:, 0]) if layer.bias is None else layer.bias
            for layer in layers
        ]
        fused.bias = constant(torch.cat(biases))
    return fused


def constant(tensor: Tensor) -> nn.Parameter:
    """Return a contiguous parameter without gradient."""
    return nn.Parameter(tensor.detach().contiguous(), requires_grad=False)
