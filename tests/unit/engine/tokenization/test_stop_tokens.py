"""The tokens that end a text, and the generation settings that are ignored."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from transformers import GenerationConfig, PreTrainedModel

from worker.engine.tokenization.stop_tokens import resolve_stop_tokens


def model(**settings: Any) -> PreTrainedModel:
    """Return a stand-in for a model: only its generation settings are read."""
    config = GenerationConfig(**settings)  # type: ignore[no-untyped-call]  # transformers has no types there
    return cast("PreTrainedModel", SimpleNamespace(generation_config=config))


@pytest.mark.parametrize(
    ("eos_token_id", "expected"), [(7, {7}), ([7, 9], {7, 9}), ([], set()), (0, {0})]
)
def test_the_models_eos_tokens_end_a_text(
    byte_level: Any, eos_token_id: Any, expected: set[int]
) -> None:
    assert resolve_stop_tokens(model(eos_token_id=eos_token_id), byte_level) == expected


def test_the_tokenizers_eos_token_is_the_fallback(byte_level: Any) -> None:
    assert resolve_stop_tokens(model(), byte_level) == {byte_level.eos_token_id}


def test_an_invalid_eos_token_is_refused(byte_level: Any) -> None:
    with pytest.raises(ValueError, match="eos_token_id='</s>', which is no token's id"):
        resolve_stop_tokens(model(eos_token_id="</s>"), byte_level)


def test_other_generation_settings_are_dropped_with_a_warning(
    byte_level: Any, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint: Any = model(eos_token_id=7, repetition_penalty=1.3, min_new_tokens=5)
    resolve_stop_tokens(checkpoint, byte_level)
    assert "min_new_tokens, repetition_penalty" in caplog.text
    resolved = checkpoint.generation_config
    assert (resolved.eos_token_id, resolved.repetition_penalty, resolved.min_new_tokens) == (
        [7],
        None,
        None,
    )
