"""The forward pass of Llama's architecture over rows, as plain functions over tensors.

Projections that read the same input are one product, and the last layer's MLP computes only tokens
whose logits are wanted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from worker.engine.attention.interface import LayerAttention
from worker.engine.attention.row_attention import RowAttention
from worker.engine.lora.linear import LoRALayers
from worker.engine.models.llama_common import sliding_window_of
from worker.engine.models.packed_linear import pack_linear


@dataclass(frozen=True)
class _Layer:
    input_norm: Tensor
    qkv: nn.Module
    attention: LayerAttention
    o_proj: nn.Module
    post_attention_norm: Tensor
    gate_up: nn.Module
    act_fn: nn.Module
    down_proj: nn.Module


class LlamaRowModel:
    """Llama, Mistral and Qwen 2; `worker.engine.models.model.RowModel`."""

    def __init__(self, base: Any, lora: LoRALayers) -> None:
        """
        Args:
            base: the model, whose projections are dropped as they are fused.
            lora: makes its linear layers.
        """
        config = base.config
        self._mapping = lora.mapping
        self._embed_tokens: nn.Module = base.model.embed_tokens
        self._rotary_emb: nn.Module = base.model.rotary_emb
        self._rms_norm_eps = float(config.rms_norm_eps)
        self._norm: Tensor = base.model.norm.weight.detach()
        self._vocab_size = int(config.vocab_size)
        attention: Any = base.model.layers[0].self_attn
        self._head_size = int(attention.head_dim)
        self._num_heads = int(config.num_attention_heads)
        self._num_kv_heads = int(config.num_key_value_heads)
        scaling = float(attention.scaling)
        self._layers = []
        for index, layer in enumerate(base.model.layers):
            attention, mlp = layer.self_attn, layer.mlp
            self._layers.append(
                _Layer(
                    input_norm=layer.input_layernorm.weight.detach(),
                    qkv=lora.fuse(attention.q_proj, attention.k_proj, attention.v_proj),
                    attention=LayerAttention(index, scaling, sliding_window_of(base, layer)),
                    o_proj=lora.fuse(attention.o_proj),
                    post_attention_norm=layer.post_attention_layernorm.weight.detach(),
                    gate_up=lora.fuse(mlp.gate_proj, mlp.up_proj),
                    act_fn=mlp.act_fn,
                    down_proj=lora.fuse(mlp.down_proj),
                )
            )
            # The fused layers have copies. Drop the originals at once: two models may not fit.
            layer.self_attn = layer.mlp = None
        is_tied = base.lm_head.weight is self._embed_tokens.weight
        self._lm_head: nn.Module = base.lm_head if is_tied else pack_linear(base.lm_head)

    @torch.inference_mode()
    def __call__(
        self,
        input_ids: Tensor,
        adapter_ids: Sequence[int],
        attention: RowAttention,
        logits_indices: Sequence[int],
    ) -> Tensor:
        self._mapping.set(adapter_ids, input_ids.device)
        some = logits_indices if len(logits_indices) < len(input_ids) else None
        return self._forward(input_ids, attention, some)

    def _forward(
        self, input_ids: Tensor, attention: RowAttention, logits_indices: Sequence[int] | None
    ) -> Tensor:
        """Return logits after some of the mapping's tokens, or after all."""
        x: Tensor = self._embed_tokens(input_ids)
        cos, sin = self._rotary(x, attention.positions)
        for index, layer in enumerate(self._layers):
            heads = layer.qkv(self._rms_norm(x, layer.input_norm))
            heads = heads.view(len(input_ids), -1, self._head_size)
            rotated = _rotate(heads[:, : -self._num_kv_heads], cos, sin)
            attended = attention.attend(
                rotated[:, : self._num_heads],
                rotated[:, self._num_heads :],
                heads[:, -self._num_kv_heads :],
                layer.attention,
            ).flatten(1)
            if index + 1 == len(self._layers) and logits_indices is not None:
                if not logits_indices:
                    return x.new_empty(0, self._vocab_size)
                # Nothing reads the other tokens any more: their keys and values are stored.
                selected = self._mapping.select(logits_indices)
                x, attended = x[selected], attended[selected]
            x = x + layer.o_proj(attended)
            gate_up = layer.gate_up(self._rms_norm(x, layer.post_attention_norm))
            gate, up = gate_up.chunk(2, dim=-1)
            x = x + layer.down_proj(layer.act_fn(gate) * up)
        logits: Tensor = self._lm_head(self._rms_norm(x, self._norm))
        return logits

    def _rms_norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return nn.functional.rms_norm(x, weight.shape, weight, self._rms_norm_eps)

    def _rotary(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosines, and sines with the signs that `_rotate` wants: (tokens, 1, head size)."""
        cos, sin = self._rotary_emb(x[None], positions[None])
        cos, sin = cos[0][:, None], sin[0][:, None]
        half = self._head_size // 2
        return cos, torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary position embeddings (Su et al., RoFormer, with Llama's order of halves)."""
    first, second = x.chunk(2, dim=-1)
    return torch.addcmul(x * cos, torch.cat([second, first], dim=-1), sin)
