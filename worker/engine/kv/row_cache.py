"""A KV cache of rows, each as long as the context, on a CPU."""

from __future__ import annotations

import math
import mmap

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from worker.engine.kv.prefix_cache import RowAllocation
from worker.engine.kv.shape import kv_head_shape


class RowKVCache:
    """Keys and values of each layer: (rows, key-value heads, ``max_model_len``, head size)."""

    def __init__(
        self,
        config: PreTrainedConfig,
        *,
        num_rows: int,
        max_model_len: int,
        dtype: torch.dtype,
    ) -> None:
        """
        Args:
            config: the model's.
            num_rows: number of rows.
            max_model_len: maximum number of tokens of a row.
            dtype: of keys and values.
        """
        num_kv_heads, head_size = kv_head_shape(config)
        shape = (num_rows, num_kv_heads, max_model_len, head_size)
        layers = range(config.num_hidden_layers)
        self.keys = [_zeros(shape, dtype) for _ in layers]
        self.values = [_zeros(shape, dtype) for _ in layers]
        self.num_rows = num_rows
        self.num_kv_heads = num_kv_heads
        self.max_model_len = max_model_len

    def copy_prefix(self, allocation: RowAllocation) -> None:
        """Copy a cached prefix from another row."""
        row, source, length = allocation.row, allocation.source_row, allocation.num_cached_tokens
        for tensor in (*self.keys, *self.values):
            tensor[row, :, :length] = tensor[source, :, :length]

    def zero(self, row: int, start: int = 0) -> None:
        """Zero a row's keys and values from position ``start`` on."""
        for tensor in (*self.keys, *self.values):
            tensor[row, :, start:] = 0

    @property
    def nbytes(self) -> int:
        return 2 * len(self.keys) * self.keys[0].nbytes


def _zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return zeros: uninitialized memory may hold NaN, and a masked NaN is still a NaN.

    A page takes physical memory when it is first written. Huge pages of 2 MB would take it for whole rows, of which most
    texts need the beginning alone; NumPy and PyTorch ask for them.
    """
    size = math.prod(shape) * dtype.itemsize
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):  # Linux
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(shape)
