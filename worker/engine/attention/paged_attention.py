"""Attention of a step over a paged KV cache, for models that call `Attention`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from worker.engine.attention.interface import LayerAttention
from worker.engine.attention.paged_batch import PagedBatch
from worker.engine.kv.paged_cache import PagedKVCache


@dataclass(frozen=True)
class PagedAttention:
    """`worker.engine.attention.interface.Attention` over pages."""

    #: `worker.engine.cuda.kernels` or `worker.engine.cuda.torch_ops`.
    ops: Any
    batch: PagedBatch
    cache: PagedKVCache

    def attend(self, query: Tensor, key: Tensor, value: Tensor, params: LayerAttention) -> Tensor:
        layer, scaling, window = params
        self.ops.reshape_and_cache(
            key.contiguous(), value.contiguous(), self.batch, self.cache, layer
        )
        output: Tensor = self.ops.paged_attention(
            query, self.batch, self.cache, layer, scaling, window
        )
        return output
