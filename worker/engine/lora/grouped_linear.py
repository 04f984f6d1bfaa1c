"""A linear layer that applies each adapter's factors to its segment of the batch: for CPUs."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from worker.engine.lora.factors import Projection
from worker.engine.lora.fused import fuse_bases, fuse_factors
from worker.engine.lora.mapping import LoRAMapping
from worker.engine.models.packed_linear import pack_linear


class GroupedLoRALinear(nn.Module):
    """Fused linear layers; each segment of tokens gets the factors of its adapter."""

    def __init__(self, projections: Sequence[Projection], mapping: LoRAMapping) -> None:
        """
        Args:
            projections: they read the same input, and their outputs are concatenated; several must be
                `nn.Linear`.
            mapping: shared by all layers of the model.
        """
        super().__init__()
        self._mapping = mapping
        self._adapters = [fuse_factors(projections, i) for i in range(len(projections[0].factors))]
        self.base = pack_linear(fuse_bases(projections))

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, tokens, in) to (…, tokens, out); the tokens are those of the mapping."""
        result: Tensor = self.base(x)
        output, rows = result.view(-1, result.shape[-1]), x.reshape(-1, x.shape[-1])
        for segment in self._mapping.segments:
            if (factors := self._adapters[segment.adapter_id]) is None:
                continue
            a, parts = factors
            inner = rows[segment.start : segment.end] @ a
            for columns, ranks, b in parts:
                output[segment.start : segment.end, columns].addmm_(inner[:, ranks], b)
        return result
