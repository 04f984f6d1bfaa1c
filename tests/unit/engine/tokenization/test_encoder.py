"""Prompts as token ids, and the room that they leave for a text."""

from __future__ import annotations

import copy
import threading
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


@pytest.mark.parametrize("split_special_tokens", [False, True])
def test_a_prompt_has_the_tokens_that_transformers_gives_it(
    byte_level: Any, byte_fallback: Any, split_special_tokens: bool
) -> None:
    for tokenizer in map(copy.deepcopy, (byte_level, byte_fallback)):
        tokenizer.split_special_tokens = split_special_tokens
        text = f"  Ünï¢ode, 科学 ☕\u2028{tokenizer.eos_token}\x00 {tokenizer.bos_token} end \n"
        expected = tokenizer.encode(text)
        # A file can say that texts are cut or filled. transformers does neither unless it is asked to.
        tokenizer.backend_tokenizer.enable_truncation(3)
        tokenizer.backend_tokenizer.enable_padding(length=200)
        assert Encoder(tokenizer, 4096)(request(50, text))[0] == expected


def test_a_short_prompt_does_not_wait_for_a_long_one(byte_level: Any) -> None:
    encode = Encoder(byte_level, 1 << 30)
    long = threading.Thread(target=encode, args=[request(50, "word " * 100_000)])
    long.start()
    finished = 0
    while long.is_alive():
        encode(request(50))
        finished += long.is_alive()
    assert finished > 200, "before the thread began there was time for a few"
