"""A linear layer whose shapes do not depend on the mixture of adapters: for GPUs, and for any mixture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from worker.engine.lora.factors import Projection
from worker.engine.lora.fused import constant, fuse_bases
from worker.engine.lora.mapping import LoRAMapping


class _Part(NamedTuple):
    """The adapters of one projection."""

    #: Columns of the fused output.
    columns: slice
    #: Columns of ``x @ A`` of all adapters.
    inner: slice
    #: Rank of each adapter.
    ranks: tuple[int, ...]


class StackedLoRALinear(nn.Module):
    """Fused linear layers with the factors of all adapters stacked.

    The factors A of all adapters are appended to the weight as further output rows; the factors B are
    stacked. One product gives [W x, A x], a mask zeroes the parts of A x that belong to other adapters,
    and a second product adds B.
    """

    def __init__(self, projections: Sequence[Projection], mapping: LoRAMapping) -> None:
        """
        Args:
            projections: they read the same input, and their outputs are concatenated; several must be
                `nn.Linear`.
            mapping: shared by all layers of the model.
        """
        super().__init__()
        self._mapping = mapping
        self._parts: list[_Part] = []
        self.masks, self.lora_b = nn.ParameterList(), nn.ParameterList()
        lora_a = []
        rank = column = 0
        for projection in projections:
            out_features = projection.out_features
            ranks = tuple(0 if pair is None else len(pair[0]) for pair in projection.factors)
            if present := [pair for pair in projection.factors if pair is not None]:
                lora_a += [a for a, _ in present]
                self.lora_b.append(constant(torch.cat([b.T for _, b in present])))
                owner = torch.repeat_interleave(torch.arange(len(ranks)), torch.tensor(ranks))
                mask = owner[None] == torch.arange(len(ranks))[:, None]
                self.masks.append(constant(mask.to(present[0][0])))
                columns = slice(column, column + out_features)
                self._parts.append(_Part(columns, slice(rank, rank + sum(ranks)), ranks))
                rank += sum(ranks)
            column += out_features
        base: Any = fuse_bases(projections)
        self._out_features = column
        self.base: Any = None
        self.bias: Any = None
        if type(base) is nn.Linear:
            self.weight = constant(torch.cat([base.weight, *lora_a]))
            self.bias = base.bias
        else:  # quantized: no rows can be appended to its weight
            self.base = base
            self.weight = constant(torch.cat(lora_a))

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, tokens, in) to (…, tokens, out); the tokens are those of the mapping."""
        rows = x.reshape(-1, x.shape[-1])
        product = nn.functional.linear(rows, self.weight)
        if self.base is None:
            output, inner = product[:, : self._out_features], product[:, self._out_features :]
            if self.bias is not None:
                output += self.bias
        else:
            output, inner = self.base(rows), product
        for part, mask, b in zip(self._parts, self.masks, self.lora_b, strict=True):
            columns, ranks, key = part
            output[:, columns].addmm_(inner[:, ranks] * self._mapping.mask(mask, key), b)
        return output.reshape(*x.shape[:-1], output.shape[-1])
