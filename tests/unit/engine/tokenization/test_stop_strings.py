"""Where stop strings end a text."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.engine.tokenization.detokenizer import Detokenizer, decode
from worker.engine.tokenization.stop_strings import StopStrings
from worker.engine.tokenization.stopping_detokenizer import StoppingDetokenizer, make_detokenizer

TEXT = "It is four. ☕ Stop here, 科学 and no further."


def cut(text: str, stop: list[str]) -> str:
    """Return a text up to its first stop string, character by character."""
    for end in range(len(text) + 1):
        if found := [s for s in stop if text[:end].endswith(s)]:
            return text[: end - len(max(found, key=len))]
    return text


@given(
    pieces=st.lists(st.text("ab", max_size=5), max_size=8),
    stop=st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=4),
)
def test_the_end_does_not_depend_on_the_pieces(pieces: list[str], stop: list[str]) -> None:
    strings = StopStrings(stop)
    text, whole = "", "".join(pieces)
    expected = cut(whole, stop)
    for piece in pieces:
        text += strings.push(piece)
        assert expected.startswith(text), "what was handed on cannot be taken back"
        if strings.found:
            break
    assert strings.found == (expected != whole or any(whole.endswith(s) for s in stop))
    if strings.found:
        assert text == expected
    else:
        held = whole.removeprefix(text)
        assert not held or any(s.startswith(held) for s in stop), "no more is held back than needed"


@pytest.mark.parametrize(
    "stop",
    [[" Stop"], ["here", "Stop here"], ["☕"], ["学", "fur"], ["I", "t"], ["er."], ["five", "!"]],
)
def test_a_text_ends_before_its_first_stop_string(
    byte_level: Any, byte_fallback: Any, stop: list[str]
) -> None:
    for tokenizer in byte_level, byte_fallback:
        ids = tokenizer.encode(TEXT, add_special_tokens=False)
        plain = Detokenizer(tokenizer)
        plain.extend(ids)
        whole, _ = plain.finish()
        lengths = set()
        for size in 1, 4, len(ids):
            detokenizer = StoppingDetokenizer(tokenizer, stop)
            streamed = ""
            for start in range(0, len(ids), size):
                prefix, extended = detokenizer.begin(ids[start : start + size])
                streamed += detokenizer.complete(
                    decode(tokenizer, prefix), decode(tokenizer, extended)
                )
                if detokenizer.stopped:
                    break
            text, rest = detokenizer.finish()
            assert streamed + rest == "".join(detokenizer.deltas) == text == cut(whole, stop)
            assert detokenizer.stopped == (text != whole)
            lengths.add(len(detokenizer.token_ids))
        [length] = lengths
        before = Detokenizer(tokenizer)
        before.extend(ids[: length - 1])
        assert text == whole or not any(s in before.finish()[0] for s in stop), "none is too many"


def test_a_character_of_several_tokens_is_found_when_it_is_whole(byte_level: Any) -> None:
    ids = byte_level.encode("four ☕", add_special_tokens=False)
    detokenizer = StoppingDetokenizer(byte_level, ["☕"])
    streamed = [detokenizer.push(token) for token in ids]
    assert detokenizer.stopped
    assert detokenizer.finish() == ("four ", "")
    assert "".join(streamed) == "four "


def test_without_stop_strings_nothing_is_looked_for(byte_level: Any) -> None:
    assert isinstance(make_detokenizer(byte_level, ()), Detokenizer)
