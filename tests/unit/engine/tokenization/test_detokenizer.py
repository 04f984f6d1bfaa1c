"""Incremental decoding: deltas end at whole characters, and add up to the text."""

from __future__ import annotations

import random
from typing import Any

import pytest

from worker.engine.tokenization.detokenizer import REPLACEMENT, Detokenizer, batch_decoder

TEXTS = [
    "What is gravity?",
    " leading and  double  spaces\n\ttabs",
    "Ünïcode 漢字 and 🙂👍🏽 emoji",
    "a\0b",
    "",
]


@pytest.fixture(params=["byte_level", "byte_fallback"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("text", TEXTS)
def test_deltas_add_up_to_the_text(tokenizer: Any, text: str) -> None:
    """Token by token, and several tokens at a time."""
    token_ids = tokenizer.encode(text, add_special_tokens=False)
    expected = tokenizer.decode(token_ids, skip_special_tokens=True)
    for size in (1, 3, len(token_ids) + 1):
        detokenizer = Detokenizer(tokenizer)
        for start in range(0, len(token_ids), size):
            delta = detokenizer.extend(token_ids[start : start + size])
            assert REPLACEMENT not in delta
        assert detokenizer.finish()[0] == expected
        assert "".join(detokenizer.deltas) == expected


def test_a_character_is_held_back_until_it_is_complete(byte_level: Any) -> None:
    token_ids = byte_level.encode("漢", add_special_tokens=False)
    assert len(token_ids) == 3
    detokenizer = Detokenizer(byte_level)
    assert [detokenizer.push(token_id) for token_id in token_ids] == ["", "", "漢"]


def test_an_incomplete_character_at_the_end_is_part_of_the_last_delta(byte_level: Any) -> None:
    detokenizer = Detokenizer(byte_level)
    for token_id in byte_level.encode("air 漢", add_special_tokens=False)[:-1]:
        detokenizer.push(token_id)
    text, rest = detokenizer.finish()
    assert text == "".join(detokenizer.deltas)
    assert rest.endswith(REPLACEMENT)


def test_special_tokens_are_not_part_of_the_text(tokenizer: Any) -> None:
    detokenizer = Detokenizer(tokenizer)
    token_ids = tokenizer.encode("air", add_special_tokens=False)
    detokenizer.extend([tokenizer.bos_token_id, *token_ids, tokenizer.eos_token_id])
    assert detokenizer.finish()[0].strip() == "air"


def test_a_decoder_that_rewrites_earlier_text_keeps_the_number_of_deltas(byte_level: Any) -> None:
    """The stored events are numbered by it."""
    detokenizer = Detokenizer(byte_level)
    for token_id in byte_level.encode("the air and the field", add_special_tokens=False):
        detokenizer.push(token_id)
    count = len(detokenizer.deltas)
    assert detokenizer.finish("The air, and the field.") == ("The air, and the field.", "")
    assert "".join(detokenizer.deltas) == "The air, and the field."
    assert len(detokenizer.deltas) == count


def test_a_batch_is_decoded_as_its_sequences_are(tokenizer: Any) -> None:
    rng = random.Random(0)
    sequences = [rng.choices(range(len(tokenizer)), k=rng.randint(0, 12)) for _ in range(40)]
    expected = [tokenizer.decode(s, skip_special_tokens=True) for s in sequences]
    assert batch_decoder(tokenizer)(sequences) == expected


def test_a_batch_is_decoded_by_transformers_where_it_rewrites_texts(
    byte_level: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a text would differ from the one of the card's program."""
    text = "the air , and it 's"
    token_ids = byte_level.encode(text, add_special_tokens=False)
    assert batch_decoder(byte_level)([token_ids]) == [text]
    with monkeypatch.context() as patch:
        patch.setattr(byte_level, "clean_up_tokenization_spaces", True)
        name = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"
        patch.setattr(byte_level, name, True, raising=False)
        cleaned = byte_level.decode(token_ids, skip_special_tokens=True)
        assert cleaned == "the air, and it's"
        assert batch_decoder(byte_level)([token_ids]) == [cleaned]
    monkeypatch.setattr(type(byte_level), "decode", lambda *_, **__: "Its own.")
    assert batch_decoder(byte_level)([token_ids]) == ["Its own."]
