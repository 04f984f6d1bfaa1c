"""Which models the engine that batches computes as they are meant."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

#: transformers' names of the models whose scores in a mixed batch are compared with PEFT's
#: (`tests/integration/test_architectures.py`). What others do in their attention may go past the
#: interface that the engine gives them, unnoticed: of some, every text would be wrong, and depend on
#: those of others.
CHECKED = frozenset(
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


def unbatchable(config: Any, context: int) -> list[str]:
    """Say why the engine that batches cannot compute a model; empty if it can.

    Args:
        config: transformers' configuration of the model.
        context: the most tokens of prompt and output together.
    """
    if config.model_type not in CHECKED:
        return [
            f"the base model: nobody checked that a {config.model_type} can be decoded in batches"
        ]
    if getattr(config, "sliding_window", None) == 1 and getattr(config, "use_sliding_window", True):
        return [
            "the base model: with a window of 1 token, transformers attends to more while it decodes"
        ]
    for positions in _positions(config):
        known = positions.get("original_max_position_embeddings") or getattr(
            config, "original_max_position_embeddings", None
        )
        if positions.get("rope_type") == "longrope" and known and context > known:
            # transformers chooses the factors by the longest text of a step, for all of them.
            return [
                "the base model: it tells positions in a way that depends on a text's length (longrope); "
                f"HELIXQ_MAX_CONTEXT={known} or less avoids it"
            ]
    return []


def _positions(config: Any) -> Iterator[dict[str, Any]]:
    """Give the settings of rotary positions: one for all layers, or one for each kind of them."""
    found = getattr(config, "rope_parameters", None) or {}
    yield found
    yield from (value for value in found.values() if isinstance(value, dict))
