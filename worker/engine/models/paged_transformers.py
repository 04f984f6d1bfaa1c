"""Any causal language model of transformers over a cache of blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from worker.engine.attention.paged_batch import FlatBatch
from worker.engine.attention.row_attention import ATTENTION
from worker.engine.kv.paged_cache import BlockCache
from worker.engine.models.llama import Layers


@dataclass(frozen=True)
class PagedAttention:
    """Attention of a batch; `worker.engine.attention.row_attention.Attention` for a cache of blocks."""

    ops: Any
    batch: FlatBatch
    cache: BlockCache

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        layer: int,
        scaling: float,
        window: int | None,
    ) -> Tensor:
        self.ops.store(key.contiguous(), value.contiguous(), self.batch, self.cache, layer)
        found: Tensor = self.ops.attend(query, self.batch, self.cache, layer, scaling, window)
        return found


class PagedTransformers:
    """Computes flat batches by transformers' own modules, their linear layers replaced."""

    def __init__(self, base: Any, layers: Layers, ops: Any) -> None:
        """
        Args:
            base: the model, whose attention goes through transformers' interface.
            layers: its linear layers, whose shapes no mixture of adapters changes
                (`worker.engine.lora.layers.StackedLinear`).
            ops: `worker.engine.cuda.kernels` or `worker.engine.cuda.torch_ops`.
        """
        self._ops = ops
        self._rows = layers.rows
        self._keep: Tensor | None = None
        head = base.get_output_embeddings()
        for path in layers.adapted:
            parent, _, attribute = path.rpartition(".")
            layer = base.get_submodule(path)
            replaced = layers.join(layer)
            if layer is head:  # it sees the tokens that are drawn from, and no others
                replaced.register_forward_pre_hook(self._keep_rows)
            setattr(base.get_submodule(parent), attribute, replaced)
        base.set_attn_implementation(ATTENTION)
        self._model = base.eval()

    def _keep_rows(self, *_: object) -> None:
        if self._keep is not None:
            self._rows.select(self._keep)

    @torch.inference_mode()
    def __call__(self, batch: FlatBatch, cache: BlockCache, keep: Tensor | None = None) -> Tensor:
        """As `worker.engine.models.paged_llama.FusedLlama`, but it may ask the device for something."""
        self._rows.point(batch.adapters.long())
        self._keep = keep
        logits: Tensor = self._model(
            input_ids=batch.ids[None],
            position_ids=batch.positions.long()[None],
            use_cache=False,
            logits_to_keep=0 if keep is None else keep,
            layout=PagedAttention(self._ops, batch, cache),
        ).logits[0]
        return logits
