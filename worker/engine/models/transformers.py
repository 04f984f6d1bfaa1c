"""Any causal language model of transformers, its linear layers and its attention replaced."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

from worker.engine.attention.interface import Attention, LayerAttention
from worker.engine.attention.paged_attention import PagedAttention
from worker.engine.attention.paged_batch import PagedBatch
from worker.engine.attention.row_attention import RowAttention
from worker.engine.kv.paged_cache import PagedKVCache
from worker.engine.lora.linear import LoRALayers

#: The name of `_attention_forward` in transformers' attention interface.
ATTENTION = "helixq"


def _attention_forward(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    attention: Attention,
    scaling: float,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """`Attention.attend` as transformers' models call it.

    Args:
        module: an attention layer.
        query: (1, heads, tokens, head size), and so are key and value.
        key: see above.
        value: see above.
        attention_mask: ignored; ``attention`` has the masks.
        attention: the step's.
        scaling: factor of the scores.
        sliding_window: as `LayerAttention` has it.

    Returns:
        (1, tokens, heads, head size), and no weights.
    """
    del attention_mask
    layer: Any = module.layer_idx  # transformers sets it
    output = attention.attend(
        query[0].transpose(0, 1).contiguous(),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        LayerAttention(layer, scaling, sliding_window),
    )
    return output[None], None


AttentionInterface.register(ATTENTION, _attention_forward)


class _TransformersModel:
    """A model whose linear layers have adapters, and whose attention is the step's."""

    def __init__(self, base: Any, lora: LoRALayers) -> None:
        """
        Args:
            base: the model; its attention must go through transformers' interface.
            lora: makes its linear layers.
        """
        self._mapping = lora.mapping
        lm_head = base.get_output_embeddings()
        for name in lora.adapted_names:
            parent, _, attribute = name.rpartition(".")
            layer = base.get_submodule(name)
            fused = lora.fuse(layer)
            if layer is lm_head:  # its input is the tokens whose logits are wanted, and no others
                fused.register_forward_pre_hook(lambda *_: self._select_tokens())
            setattr(base.get_submodule(parent), attribute, fused)
        base.set_attn_implementation(ATTENTION)
        self._model = base.eval()

    def _select_tokens(self) -> None:
        """Reduce the mapping to the tokens whose logits are wanted."""
        raise NotImplementedError


class TransformersRowModel(_TransformersModel):
    """`worker.engine.models.model.RowModel`."""

    _logits_indices: Sequence[int] = ()

    def _select_tokens(self) -> None:
        self._mapping.select(self._logits_indices)

    @torch.inference_mode()
    def __call__(
        self,
        input_ids: Tensor,
        adapter_ids: Sequence[int],
        attention: RowAttention,
        logits_indices: Sequence[int],
    ) -> Tensor:
        self._mapping.set(adapter_ids, input_ids.device)
        self._logits_indices = logits_indices
        logits: Tensor = self._model(
            input_ids=input_ids[None],
            position_ids=attention.positions[None],
            use_cache=False,
            logits_to_keep=torch.tensor(logits_indices, dtype=torch.int64, device=input_ids.device),
            attention=attention,
        ).logits[0]
        return logits


class PagedTransformersModel(_TransformersModel):
    """Computes a `PagedBatch`. A CUDA graph cannot capture it."""

    _logits_indices: Tensor | None = None

    def __init__(self, base: Any, lora: LoRALayers, ops: Any) -> None:
        """
        Args:
            base: the model; its attention must go through transformers' interface.
            lora: makes its linear layers, which must be stacked: the host does not know the mixture.
            ops: `worker.engine.cuda.kernels` or `worker.engine.cuda.torch_ops`.
        """
        super().__init__(base, lora)
        self._ops = ops

    def _select_tokens(self) -> None:
        if self._logits_indices is not None:
            self._mapping.select_tensor(self._logits_indices)

    @torch.inference_mode()
    def __call__(
        self, batch: PagedBatch, cache: PagedKVCache, logits_indices: Tensor | None = None
    ) -> Tensor:
        """Compute a batch; as `worker.engine.models.paged_llama.PagedLlama`, but not capturable."""
        self._mapping.set_tensor(batch.adapter_ids.long())
        self._logits_indices = logits_indices
        logits: Tensor = self._model(
            input_ids=batch.input_ids[None],
            # Learned position embeddings have none for padding tokens, which are at -1.
            position_ids=batch.positions.long().clamp(min=0)[None],
            use_cache=False,
            logits_to_keep=0 if logits_indices is None else logits_indices,
            attention=PagedAttention(self._ops, batch, cache),
        ).logits[0]
        return logits
