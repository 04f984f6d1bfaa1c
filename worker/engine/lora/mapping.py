"""The LoRA mapping of a batch: which adapter each token is for."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class AdapterSegment:
    """Successive tokens ``start … end - 1`` of a batch that are for one adapter."""

    adapter_id: int
    start: int
    end: int


class LoRAMapping:
    """The adapter of each token of the current batch. All LoRA layers of a model share it."""

    def __init__(self) -> None:
        self._adapter_ids = torch.zeros(0, dtype=torch.int64)
        self._host_adapter_ids: Sequence[int] = ()
        self._masks: dict[tuple[int, ...], Tensor] = {}
        self.segments: list[AdapterSegment] = []

    def set(self, adapter_ids: Sequence[int], device: torch.device) -> None:
        """Set the adapter of each token."""
        self.set_tensor(torch.tensor(adapter_ids, device=device))
        self._host_adapter_ids = adapter_ids
        start = 0
        for adapter_id, run in itertools.groupby(adapter_ids):
            end = start + len(list(run))
            self.segments.append(AdapterSegment(adapter_id, start, end))
            start = end

    def set_tensor(self, adapter_ids: Tensor) -> None:
        """As `set`, without values on the host: for stacked layers, which need no segments.

        Args:
            adapter_ids: (tokens,) int64, on the device.
        """
        self._adapter_ids = adapter_ids
        self._host_adapter_ids = ()
        self._masks.clear()
        self.segments = []

    def select(self, indices: Sequence[int]) -> Tensor:
        """Reduce the batch to some of its tokens; return their indices, (tokens,) int64 on the device."""
        device = self._adapter_ids.device
        self.set([self._host_adapter_ids[i] for i in indices], device)
        return torch.tensor(indices, dtype=torch.int64, device=device)

    def select_tensor(self, indices: Tensor) -> None:
        """As `select`, after `set_tensor`.

        Args:
            indices: (tokens,) int64, on the device.
        """
        self.set_tensor(self._adapter_ids[indices])

    def mask(self, table: Tensor, ranks: tuple[int, ...]) -> Tensor:
        """Return each token's row of a layer's table. Layers with the same ranks share the result.

        Args:
            table: (adapters, sum of ranks): 1 where a column belongs to the adapter, else 0.
            ranks: of each adapter in the layer; they determine the table.
        """
        if ranks not in self._masks:
            self._masks[ranks] = table[self._adapter_ids]
        return self._masks[ranks]
