"""The weights of fused projections and all adapters, in the layout of the fused kernels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from worker.engine.lora.factors import Projection

#: Ranks are padded to multiples: tensor cores take no fewer, and aligned loads are wide.
ALIGNMENT = 16


@dataclass(frozen=True)
class LoRABPart:
    """The factor B of one adapter in one projection."""

    adapter_id: int
    #: Columns of the output of the factors A.
    ranks: slice
    #: Columns of the fused output.
    columns: slice
    #: (ranks, columns), scaled.
    b: Tensor


class LoRABWeights:
    """The factors B of all adapters in fused projections.

    A table holds, for each projection and adapter, which columns of the output of the factors A are the
    adapter's, and where its factor B begins.
    """

    def __init__(self, projections: Sequence[Projection], dtype: torch.dtype) -> None:
        """
        Args:
            projections: layers whose outputs are concatenated.
            dtype: of the factors.
        """
        self.num_adapters = len(projections[0].factors)
        self.out_features = sum(p.out_features for p in projections)
        factors: list[Tensor] = []
        table: list[list[list[int]]] = []
        parts: list[tuple[int, LoRABPart]] = []
        offset = rank = first_column = 0
        max_rank = 1
        for projection in projections:
            columns = slice(first_column, first_column + projection.out_features)
            first_column += projection.out_features
            table.append([])
            for adapter_id, pair in enumerate(projection.factors):
                if pair is None:
                    table[-1].append([0, 0, 0, 0])
                    continue
                b = _pad_rank(pair[1].T)
                table[-1].append([rank, len(b), offset, 0])
                factors.append(b.flatten())
                ranks = slice(rank, rank + len(b))
                parts.append((offset, LoRABPart(adapter_id, ranks, columns, b)))
                rank += len(b)
                offset += b.numel()
                # The next factor is aligned, too, so that it is loaded 16 bytes at a time.
                if padding := -offset % ALIGNMENT:
                    factors.append(b.new_zeros(padding))
                    offset += padding
                max_rank = max(max_rank, len(b))
        weight: Any = projections[0].base.weight
        #: Sum of all padded ranks.
        self.total_rank = rank
        #: Ranks of an iteration of the kernels' loop.
        self.block_rank = min(64, max(16, 1 << (max_rank - 1).bit_length()))
        self.b = torch.cat(factors) if factors else weight.new_zeros(1, dtype=dtype)
        self.parts = [
            replace(part, b=self.b[start : start + part.b.numel()].view(part.b.shape))
            for start, part in parts
        ]
        #: (projections, adapters, 4) int32: first column and number of columns of the output of the
        #: factors A, offset in ``b``, and unused. All are multiples of `ALIGNMENT`.
        self.table = torch.tensor(table, dtype=torch.int32, device=weight.device)


class StackedProjections:
    """`worker.engine.cuda.projections.FusedProjections` of 16 or 32 bits: one product gives [W x, A x]."""

    def __init__(self, projections: Sequence[Projection]) -> None:
        """
        Args:
            projections: layers whose outputs are concatenated, none quantized.
        """
        bases: list[Any] = [p.base for p in projections]
        self.lora_b = LoRABWeights(projections, bases[0].weight.dtype)
        self._out_features = self.lora_b.out_features
        weights = [base.weight.detach() for base in bases]
        self._weight = torch.cat([*weights, *stack_lora_a(projections)])
        self._bias: Tensor | None = None
        if any(base.bias is not None for base in bases):
            self._bias = self._weight.new_zeros(len(self._weight))
            column = 0
            for base in bases:
                if base.bias is not None:
                    self._bias[column : column + base.out_features] = base.bias.detach()
                column += base.out_features

    def __call__(self, x: Tensor, ops: Any) -> tuple[Tensor, Tensor]:
        if self._bias is None and ops.use_small_batch_linear(x, self._weight):
            product = ops.small_batch_linear(x, self._weight)
        else:
            product = linear(x, self._weight, self._bias)
        has_adapters = self.lora_b.total_rank > 0
        lora_a_output = product[..., self._out_features :] if has_adapters else product
        return product[..., : self._out_features], lora_a_output


def stack_lora_a(projections: Sequence[Projection]) -> list[Tensor]:
    """Return the factors A of all adapters in the order of `LoRABWeights`, (padded rank, in) each."""
    return [_pad_rank(pair[0]) for p in projections for pair in p.factors if pair is not None]


def _pad_rank(factor: Tensor) -> Tensor:
    """Pad (rank, size) with zeros to a multiple of `ALIGNMENT` ranks."""
    padding = -len(factor) % ALIGNMENT
    return torch.cat([factor, factor.new_zeros(padding, factor.shape[1])]).contiguous()
