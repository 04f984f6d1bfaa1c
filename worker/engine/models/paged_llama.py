"""The forward pass of models of Llama's build (Llama, Mistral, Qwen 2) in a few kernels a layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from worker.engine.attention.paged_batch import FlatBatch
from worker.engine.cuda.projections import Products, products
from worker.engine.kv.paged_cache import BlockCache
from worker.engine.lora.layers import Projection
from worker.engine.models.llama import window_of


@dataclass(frozen=True)
class _Layer:
    before_attention: Tensor
    qkv: Products
    output: Products
    before_mlp: Tensor
    gate_up: Products
    down: Products
    window: int | None


class FusedLlama:
    """Computes flat batches over a cache of blocks."""

    def __init__(self, base: Any, factors: Any, count: int, ops: Any, context: int) -> None:
        """
        Args:
            base: the model, whose projections it empties; they have no
                `worker.engine.cuda.projections.obstacle`.
            factors: by the names of layers, as `worker.engine.lora.layers.take_apart` returns them.
            count: of the adapters.
            ops: `worker.engine.cuda.kernels` or `worker.engine.cuda.torch_ops`.
            context: the most tokens of a sequence.
        """
        config = base.config
        self._ops = ops
        self._embedding: nn.Module = base.model.embed_tokens
        self._epsilon = float(config.rms_norm_eps)
        self._norm: Tensor = base.model.norm.weight.detach()
        self._head: nn.Module = base.lm_head
        attention: Any = base.model.layers[0].self_attn
        self._size = int(attention.head_dim)
        self._scaling = float(attention.scaling)
        weight = self._norm
        positions = torch.arange(context, device=weight.device)
        # float32: it casts to what it is given.
        cos, sin = base.model.rotary_emb(weight.new_zeros(1, dtype=torch.float32), positions[None])
        half = self._size // 2
        self._cos, self._sin = cos[0, :, :half].contiguous(), sin[0, :, :half].contiguous()
        none: list[Any] = [None] * count

        def join(path: str, *names: str) -> Products:
            module = base.get_submodule(path)
            found = [
                Projection(getattr(module, name), factors.get(f"{path}.{name}", none))
                for name in names
            ]
            joined = products(found, weight.dtype)
            for name in names:
                setattr(module, name, None)
                factors.pop(f"{path}.{name}", None)
            return joined

        self._layers = []
        for index, layer in enumerate(base.model.layers):
            path = f"model.layers.{index}"
            self._layers.append(
                _Layer(
                    before_attention=layer.input_layernorm.weight.detach(),
                    qkv=join(f"{path}.self_attn", "q_proj", "k_proj", "v_proj"),
                    output=join(f"{path}.self_attn", "o_proj"),
                    before_mlp=layer.post_attention_layernorm.weight.detach(),
                    gate_up=join(f"{path}.mlp", "gate_proj", "up_proj"),
                    down=join(f"{path}.mlp", "down_proj"),
                    window=window_of(base, layer),
                )
            )

    @property
    def written_out(self) -> int:
        """Bytes of the largest matrix that is written out in 16 bits for a step, and not kept."""
        return max(
            each.written_out
            for layer in self._layers
            for each in (layer.qkv, layer.output, layer.gate_up, layer.down)
        )

    @torch.inference_mode()
    def __call__(self, batch: FlatBatch, cache: BlockCache, keep: Tensor | None = None) -> Tensor:
        """Compute tokens, store their keys and values, and score what may follow some of them.

        Asks the device for nothing, so that it can be recorded.

        Args:
            batch: the tokens.
            cache: keys and values.
            keep: the tokens whose successors are wanted, rising, (kept,) int64; all if None.

        Returns:
            (kept, vocabulary).
        """
        ops, adapters = self._ops, batch.adapters
        x: Tensor = self._embedding(batch.ids)
        for index, layer in enumerate(self._layers):
            product, inner = layer.qkv(ops.rms_norm(x, layer.before_attention, self._epsilon), ops)
            queries = ops.heads(
                product, inner, layer.qkv.expansion, batch, self._cos, self._sin, cache, index
            )
            found = ops.attend(queries, batch, cache, index, self._scaling, layer.window).flatten(1)
            if index + 1 == len(self._layers) and keep is not None:
                # Nothing reads the others any more: their keys and values are stored.
                x, found, adapters = x[keep], found[keep], adapters[keep]
            x = ops.add(x, *layer.output(found, ops), layer.output.expansion, adapters)
            h = layer.gate_up(ops.rms_norm(x, layer.before_mlp, self._epsilon), ops)
            h = ops.swiglu(*h, layer.gate_up.expansion, adapters)
            x = ops.add(x, *layer.down(h, ops), layer.down.expansion, adapters)
        logits: Tensor = self._head(ops.rms_norm(x, self._norm, self._epsilon))
        return logits
