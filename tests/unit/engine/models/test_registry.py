"""Which models the batching engine serves."""

from __future__ import annotations

import pytest
from transformers import (
    BloomConfig,
    GPTJConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
)

from worker.engine.models.registry import unsupported_reasons

LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "factor": 2.0,
    "short_factor": [1.0] * 4,
    "long_factor": [2.0] * 4,
    "original_max_position_embeddings": 64,
}


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (MistralConfig(), None),
        (MistralConfig(sliding_window=2), None),
        (Qwen2Config(sliding_window=1), None),  # which does not use it
        (BloomConfig(), "bloom is not tested in mixed batches"),
        (GPTJConfig(), "gptj is not tested in mixed batches"),
        (MistralConfig(sliding_window=1), "with a sliding window of 1 token"),
    ],
)
def test_tested_model_types_are_served(config: PreTrainedConfig, reason: str | None) -> None:
    reasons = unsupported_reasons(config, 4096)
    assert [reason in text for text in reasons if reason] == ([True] if reason else [])
    assert bool(reasons) == bool(reason)


def test_positions_that_depend_on_the_length_need_a_shorter_context() -> None:
    config = Phi3Config(
        hidden_size=32,
        num_attention_heads=4,
        original_max_position_embeddings=64,
        rope_parameters=LONGROPE,
    )
    [reason] = unsupported_reasons(config, 65)
    assert "HELIXQ_MAX_CONTEXT=64" in reason
    assert unsupported_reasons(config, 64) == []
