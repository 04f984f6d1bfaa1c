"""A step's scores: the model's forward pass over tokens of many sequences and adapters.

Models of Llama's build (Llama, Mistral, Qwen 2) have a forward pass of our own: what reads the same
input is one product, and the last layer computes only what is drawn from. All others keep
transformers' with their linear layers replaced.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM

from worker.engine.attention.row_attention import ATTENTION, Layout
from worker.engine.lora.layers import Factors, Form, Projection, Rows, take_apart
from worker.engine.models.packed_linear import packed

#: Those of a layer of Llama's build, by their paths.
PROJECTIONS = (
    *(f"self_attn.{name}_proj" for name in "qkvo"),
    *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
)


class Forward(Protocol):
    """Computes a step."""

    def __call__(
        self, ids: Tensor, adapters: Sequence[int], layout: Layout, keep: Sequence[int]
    ) -> Tensor:
        """Compute tokens, store their keys and values, and score what may follow some of them.

        Args:
            ids: the tokens, (tokens,) int64.
            adapters: each one's, by its index.
            layout: where they belong.
            keep: the tokens whose successors are wanted, rising.

        Returns:
            (len(keep), vocabulary).
        """
        ...


def forward_of(models: dict[str, PeftModel], form: Form) -> Forward:
    """Make models with adapters ready to compute steps; they are used up.

    Args:
        models: by the adapters' names, in the order of their indices; as `take_apart` wants them.
        form: how the adapters are added.
    """
    count = len(models)
    base, factors = take_apart(models)
    layers = Layers(base, factors, count, form)
    if is_llama(base, factors) and all(type(p) is nn.Linear for p in projections(base).values()):
        return LlamaForward(base, layers)
    return TransformersForward(base, layers)


def is_llama(base: Any, adapted: Iterable[str]) -> bool:
    """Whether a base is of Llama's build, with adapters on its layers' projections alone."""
    kinds = (LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM)
    return type(base) in kinds and set(adapted) <= projections(base).keys()


def projections(base: Any) -> dict[str, nn.Module]:
    """Return all projections of a base of Llama's build by their paths; quantised, they are other modules."""
    return {
        f"model.layers.{index}.{path}": layer.get_submodule(path)
        for index, layer in enumerate(base.model.layers)
        for path in PROJECTIONS
    }


def window_of(base: Any, layer: Any) -> int | None:
    """Return how many tokens a token of a layer sees, itself included; None if all before it."""
    # Mistral's is the config's, Qwen's is each layer's; Llama has none, whatever its config says.
    if isinstance(base, MistralForCausalLM):
        found = base.config.sliding_window
    else:
        found = getattr(layer.self_attn, "sliding_window", None)
    return None if found is None else int(found)


class Layers:
    """The linear layers of a model, with the adapters that each of them has."""

    def __init__(
        self, base: nn.Module, factors: dict[str, list[Factors | None]], count: int, form: Form
    ) -> None:
        self.rows = Rows()
        #: Names of those that have some.
        self.adapted = list(factors)
        self._form = form
        self._none: list[Factors | None] = [None] * count
        self._factors = {base.get_submodule(path): found for path, found in factors.items()}

    def join(self, *layers: nn.Module) -> nn.Module:
        """Put layers of the same input side by side, with their adapters, which go from here."""
        found = [Projection(layer, self._factors.pop(layer, self._none)) for layer in layers]
        return self._form(found, self.rows)


class TransformersForward:
    """Any causal language model of transformers whose attention goes through its interface."""

    def __init__(self, base: Any, layers: Layers) -> None:
        self._rows = layers.rows
        self._keep: Sequence[int] = ()
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
        self._rows.keep(self._keep)

    @torch.inference_mode()
    def __call__(
        self, ids: Tensor, adapters: Sequence[int], layout: Layout, keep: Sequence[int]
    ) -> Tensor:
        self._rows.set(adapters, ids.device)
        self._keep = keep
        logits: Tensor = self._model(
            input_ids=ids[None],
            position_ids=layout.positions[None],
            use_cache=False,
            logits_to_keep=torch.tensor(keep, dtype=torch.int64, device=ids.device),
            layout=layout,
        ).logits[0]
        return logits


@dataclass(frozen=True)
class _Layer:
    before_attention: Tensor
    qkv: nn.Module
    output: nn.Module
    before_mlp: Tensor
    gate_up: nn.Module
    down: nn.Module
    activation: nn.Module
    window: int | None


class LlamaForward:
    """Llama, Mistral and Qwen 2 as plain functions over tensors."""

    def __init__(self, base: Any, layers: Layers) -> None:
        config = base.config
        self._rows, join = layers.rows, layers.join
        self._embedding: nn.Module = base.model.embed_tokens
        self._rotary: nn.Module = base.model.rotary_emb
        self._epsilon = float(config.rms_norm_eps)
        self._norm: Tensor = base.model.norm.weight.detach()
        self._vocabulary = int(config.vocab_size)
        attention: Any = base.model.layers[0].self_attn
        self._size = int(attention.head_dim)
        self._heads = int(config.num_attention_heads)
        self._shared = int(config.num_key_value_heads)
        self._scaling = float(attention.scaling)
        self._layers = []
        for layer in base.model.layers:
            attention, mlp = layer.self_attn, layer.mlp
            self._layers.append(
                _Layer(
                    before_attention=layer.input_layernorm.weight.detach(),
                    qkv=join(attention.q_proj, attention.k_proj, attention.v_proj),
                    output=join(attention.o_proj),
                    before_mlp=layer.post_attention_layernorm.weight.detach(),
                    gate_up=join(mlp.gate_proj, mlp.up_proj),
                    down=join(mlp.down_proj),
                    activation=mlp.act_fn,
                    window=window_of(base, layer),
                )
            )
            # What the joined layers have copied goes at once: two models may not fit.
            layer.self_attn = layer.mlp = None
        tied = base.lm_head.weight is self._embedding.weight
        self._head: nn.Module = base.lm_head if tied else packed(base.lm_head)

    @torch.inference_mode()
    def __call__(
        self, ids: Tensor, adapters: Sequence[int], layout: Layout, keep: Sequence[int]
    ) -> Tensor:
        self._rows.set(adapters, ids.device)
        return self._score(ids, layout, keep if len(keep) < len(ids) else None)

    def _score(self, ids: Tensor, layout: Layout, keep: Sequence[int] | None) -> Tensor:
        """Score what may follow the tokens of which `Rows` knows the adapters, or some of them."""
        x: Tensor = self._embedding(ids)
        cos, sin = self._angles(x, layout.positions)
        for index, layer in enumerate(self._layers):
            heads = layer.qkv(self._normed(x, layer.before_attention))
            heads = heads.view(len(ids), -1, self._size)
            turned = _rotate(heads[:, : -self._shared], cos, sin)
            found = layout.attend(
                turned[:, : self._heads],
                turned[:, self._heads :],
                heads[:, -self._shared :],
                layer=index,
                scaling=self._scaling,
                window=layer.window,
            ).flatten(1)
            if index + 1 == len(self._layers) and keep is not None:
                if not keep:
                    return x.new_empty(0, self._vocabulary)
                # Nothing reads the others any more: their keys and values are stored.
                kept = self._rows.keep(keep)
                x, found = x[kept], found[kept]
            x = x + layer.output(found)
            gate, up = layer.gate_up(self._normed(x, layer.before_mlp)).chunk(2, dim=-1)
            x = x + layer.down(layer.activation(gate) * up)
        logits: Tensor = self._head(self._normed(x, self._norm))
        return logits

    def _normed(self, x: Tensor, weight: Tensor) -> Tensor:
        return nn.functional.rms_norm(x, weight.shape, weight, self._epsilon)

    def _angles(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosines and signed sines, (tokens, 1, head size), as `_rotate` wants them."""
        cos, sin = self._rotary(x[None], positions[None])
        cos, sin = cos[0][:, None], sin[0][:, None]
        half = self._size // 2
        return cos, torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each head by its token's position (Su et al., RoFormer, in Llama's order of halves)."""
    first, second = x.chunk(2, dim=-1)
    return torch.addcmul(x * cos, torch.cat([second, first], dim=-1), sin)
