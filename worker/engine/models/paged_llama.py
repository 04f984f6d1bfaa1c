"""The forward pass of Llama's architecture over pages, in a few kernels a layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from worker.engine.attention.paged_batch import PagedBatch
from worker.engine.cuda.projections import FusedProjections, fuse_projections
from worker.engine.kv.paged_cache import PagedKVCache
from worker.engine.lora.factors import Projection
from worker.engine.models.llama_common import PROJECTIONS, sliding_window_of


@dataclass(frozen=True)
class _Layer:
    input_norm: Tensor
    qkv: FusedProjections
    sliding_window: int | None
    o_proj: FusedProjections
    post_attention_norm: Tensor
    gate_up: FusedProjections
    down_proj: FusedProjections


class PagedLlama:
    """Llama, Mistral and Qwen 2; computes a `PagedBatch`."""

    def __init__(
        self, base: Any, factors: Any, num_adapters: int, ops: Any, max_model_len: int
    ) -> None:
        """
        Args:
            base: the model, whose projections are dropped as they are fused;
                `worker.engine.cuda.projections.unsupported_reason` must return None for each.
            factors: as `worker.engine.lora.factors.extract_factors` returns them; it is emptied.
            num_adapters: number of adapters.
            ops: `worker.engine.cuda.kernels` or `worker.engine.cuda.torch_ops`.
            max_model_len: maximum number of tokens of a sequence.
        """
        config = base.config
        self._ops = ops
        self._embed_tokens: nn.Module = base.model.embed_tokens
        self._rms_norm_eps = float(config.rms_norm_eps)
        self._norm: Tensor = base.model.norm.weight.detach()
        self._lm_head: nn.Module = base.lm_head
        attention: Any = base.model.layers[0].self_attn
        self._scaling = float(attention.scaling)
        norm = self._norm
        positions = torch.arange(max_model_len, device=norm.device)
        # float32, since rotary_emb casts to the dtype of its input.
        cos, sin = base.model.rotary_emb(norm.new_zeros(1, dtype=torch.float32), positions[None])
        half = int(attention.head_dim) // 2
        #: (max_model_len, half of a head) float32.
        self._cos, self._sin = cos[0, :, :half].contiguous(), sin[0, :, :half].contiguous()
        no_factors: list[Any] = [None] * num_adapters

        def fuse(parent: str, *names: str) -> FusedProjections:
            module = base.get_submodule(parent)
            projections = [
                Projection(getattr(module, name), factors.get(f"{parent}.{name}", no_factors))
                for name in names
            ]
            return fuse_projections(projections, norm.dtype)

        self._layers = []
        for index, layer in enumerate(base.model.layers):
            name = f"model.layers.{index}"
            self._layers.append(
                _Layer(
                    input_norm=layer.input_layernorm.weight.detach(),
                    qkv=fuse(f"{name}.self_attn", "q_proj", "k_proj", "v_proj"),
                    sliding_window=sliding_window_of(base, layer),
                    o_proj=fuse(f"{name}.self_attn", "o_proj"),
                    post_attention_norm=layer.post_attention_layernorm.weight.detach(),
                    gate_up=fuse(f"{name}.mlp", "gate_proj", "up_proj"),
                    down_proj=fuse(f"{name}.mlp", "down_proj"),
                )
            )
            # A layer's projections are dropped together. They are beside each other in a GPU's memory, and one by
            # one they would leave gaps that are too small for the next layer's fused ones.
            for projection in PROJECTIONS:
                parent, _, attribute = projection.rpartition(".")
                setattr(layer.get_submodule(parent), attribute, None)
                factors.pop(f"{name}.{projection}", None)
            torch.cuda.empty_cache()

    @torch.inference_mode()
    def __call__(
        self, batch: PagedBatch, cache: PagedKVCache, logits_indices: Tensor | None = None
    ) -> Tensor:
        """Compute tokens, store their keys and values, and return logits after some of them.

        The host reads nothing from the device, so that a CUDA graph can capture it.

        Args:
            batch: the tokens.
            cache: keys and values.
            logits_indices: indices of the tokens after which logits are wanted, ascending,
                (n,) int64; all tokens if None.

        Returns:
            (n, vocabulary).
        """
        ops, adapter_ids, eps = self._ops, batch.adapter_ids, self._rms_norm_eps
        x: Tensor = self._embed_tokens(batch.input_ids)
        for index, layer in enumerate(self._layers):
            product, lora_a_output = layer.qkv(ops.rms_norm(x, layer.input_norm, eps), ops)
            queries = ops.rope_and_cache(
                product,
                lora_a_output,
                layer.qkv.lora_b,
                batch,
                self._cos,
                self._sin,
                cache,
                index,
            )
            attended = ops.paged_attention(
                queries, batch, cache, index, self._scaling, layer.sliding_window
            ).flatten(1)
            if index + 1 == len(self._layers) and logits_indices is not None:
                # Nothing reads the other tokens any more: their keys and values are stored.
                x, attended = x[logits_indices], attended[logits_indices]
                adapter_ids = adapter_ids[logits_indices]
            x = ops.add_residual(x, *layer.o_proj(attended, ops), layer.o_proj.lora_b, adapter_ids)
            h = layer.gate_up(ops.rms_norm(x, layer.post_attention_norm, eps), ops)
            h = ops.silu_and_mul(*h, layer.gate_up.lora_b, adapter_ids)
            x = ops.add_residual(x, *layer.down_proj(h, ops), layer.down_proj.lora_b, adapter_ids)
        logits: Tensor = self._lm_head(ops.rms_norm(x, self._norm, eps))
        return logits
