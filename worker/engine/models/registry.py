"""Which models the batching engine serves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

#: transformers' names of the model types whose logits in a mixed batch are compared with PEFT's
#: (`tests/integration/test_architectures.py`). Other types may compute attention past transformers'
#: interface without an error: their texts would be wrong, and depend on those of others.
TESTED_MODEL_TYPES = frozenset(
    {
        "cohere",
        "cohere2",
        "gemma",
        "gemma3_text",
        "glm4",
        "gpt_bigcode",
        "gpt_neox",
        "granite",
        "llama",
        "mistral",
        "mixtral",
        "olmo2",
        "opt",
        "phi",
        "phi3",
        "qwen2",
        "qwen2_moe",
        "qwen3",
        "smollm3",
        "starcoder2",
    }
)


def unsupported_reasons(config: Any, max_model_len: int) -> list[str]:
    """Return why the batching engine cannot serve a model; empty if it can.

    Args:
        config: transformers' configuration of the model.
        max_model_len: maximum number of tokens of prompt and output together.
    """
    if config.model_type not in TESTED_MODEL_TYPES:
        return [f"the base model: {config.model_type} is not tested in mixed batches"]
    if getattr(config, "sliding_window", None) == 1 and getattr(config, "use_sliding_window", True):
        return [
            "the base model: with a sliding window of 1 token, transformers attends to more while it "
            "decodes"
        ]
    for rope in _rope_parameters(config):
        original = rope.get("original_max_position_embeddings") or getattr(
            config, "original_max_position_embeddings", None
        )
        if rope.get("rope_type") == "longrope" and original and max_model_len > original:
            # transformers chooses the factors by the longest sequence of a batch, for all of them.
            return [
                "the base model: its position embeddings depend on a text's length (longrope); "
                f"HELIXQ_MAX_CONTEXT={original} or less avoids it"
            ]
    return []


def _rope_parameters(config: Any) -> Iterator[dict[str, Any]]:
    """Yield the parameters of rotary embeddings: one dict for all layers, or one for each layer type."""
    parameters = getattr(config, "rope_parameters", None) or {}
    yield parameters
    yield from (value for value in parameters.values() if isinstance(value, dict))
