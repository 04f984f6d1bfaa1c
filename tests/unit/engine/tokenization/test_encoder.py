"""Prompts as token ids, and the room that they leave for a text."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from jobs.pipeline import Role, Sampling
from worker.engine.interface import ContextExceededError, EngineError, Request
from worker.engine.tokenization.encoder import Encoder

PROMPT = "What is gravity?"


def request(max_output_tokens: int, prompt: str = PROMPT) -> Request:
    return Request(Role.CRITIC, prompt, Sampling(max_output_tokens=max_output_tokens))


def test_a_prompt_is_encoded_with_the_tokenizers_special_tokens(byte_level: Any) -> None:
    token_ids, max_output_tokens = Encoder(byte_level, 4096)(request(50))
    assert token_ids == byte_level.encode(PROMPT)
    assert token_ids[0] == byte_level.bos_token_id
    assert max_output_tokens == 50


@pytest.mark.parametrize(("room", "limit"), [(51, 50), (50, 50), (7, 7), (1, 1)])
def test_the_context_limits_the_output(byte_level: Any, room: int, limit: int) -> None:
    length = len(byte_level.encode(PROMPT))
    assert Encoder(byte_level, length + room)(request(50))[1] == limit


def test_a_prompt_that_fills_the_context_is_refused(byte_level: Any) -> None:
    length = len(byte_level.encode(PROMPT))
    message = f"the critic's prompt has {length} tokens, which leaves no room"
    with pytest.raises(ContextExceededError, match=message):
        Encoder(byte_level, length)(request(50))


def test_an_empty_prompt_is_refused() -> None:
    """Of a tokenizer that adds no special tokens."""
    backend = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    plain: Any = PreTrainedTokenizerFast(tokenizer_object=backend)  # type: ignore[no-untyped-call]  # transformers has no types there
    with pytest.raises(EngineError, match="the critic's prompt is empty"):
        Encoder(plain, 4096)(request(50, prompt=""))
