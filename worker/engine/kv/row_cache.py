"""Keys and values of all sequences, allocated once."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedConfig

from worker.engine.kv.prefix_cache import Place


class KVCache:
    """A tensor of keys and one of values for each layer: rows x heads x context x head size."""

    def __init__(
        self,
        config: PreTrainedConfig,
        *,
        rows: int,
        context: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        shape = (rows, heads, context, size)
        layers = range(config.num_hidden_layers)
        self.keys = [_zeros(shape, dtype, device) for _ in layers]
        self.values = [_zeros(shape, dtype, device) for _ in layers]
        self.rows = rows
        self.heads = heads
        self.context = context
        self.device = device

    def copy(self, place: Place) -> None:
        """Let a row take over what another one holds."""
        for tensor in (*self.keys, *self.values):
            tensor[place.row, :, : place.length] = tensor[place.source, :, : place.length]

    def clear(self, row: int, start: int = 0) -> None:
        """Make a row's keys and values numbers again, from a position on."""
        for tensor in (*self.keys, *self.values):
            tensor[row, :, start:] = 0

    @property
    def nbytes(self) -> int:
        return 2 * len(self.keys) * self.keys[0].nbytes

    @staticmethod
    def bytes_per_token(config: PreTrainedConfig, dtype: torch.dtype) -> int:
        """What one token of one row takes in all layers."""
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return int(2 * config.num_hidden_layers * heads * size * dtype.itemsize)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros, not whatever is there: a NaN under a mask is still a NaN."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    # numpy's come from the system as they are: a page takes memory when it is first written to.
    memory = np.zeros(math.prod(shape) * dtype.itemsize, dtype=np.uint8)
    return torch.from_numpy(memory).view(dtype).view(shape)
