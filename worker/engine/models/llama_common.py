"""What models of Llama's architecture (Llama, Mistral, Qwen 2) have in common."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from transformers import LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM

#: Names of a layer's projections.
PROJECTIONS = (
    *(f"self_attn.{name}_proj" for name in "qkvo"),
    *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
)


def is_llama(base: Any, adapted_names: Iterable[str]) -> bool:
    """Whether a base has Llama's architecture, with adapters on its layers' projections alone."""
    types = (LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM)
    return type(base) in types and set(adapted_names) <= projections(base).keys()


def projections(base: Any) -> dict[str, nn.Module]:
    """Return all projections by name. In a quantized base they are not `nn.Linear`."""
    return {
        f"model.layers.{index}.{name}": layer.get_submodule(name)
        for index, layer in enumerate(base.model.layers)
        for name in PROJECTIONS
    }


def sliding_window_of(base: Any, layer: Any) -> int | None:
    """Return the number of tokens that a token of a layer attends to, itself included; None if all."""
    # Mistral's is in the config, Qwen's in each layer. Llama has none, whatever its config says.
    if isinstance(base, MistralForCausalLM):
        window = base.config.sliding_window
    else:
        window = getattr(layer.self_attn, "sliding_window", None)
    return None if window is None else int(window)
