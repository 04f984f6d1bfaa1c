"""Text out of tokens while they come, at boundaries where characters are whole."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

#: What a tokenizer decodes an unfinished UTF-8 sequence to.
REPLACEMENT = "\ufffd"
#: A single byte, in vocabularies that fall back to bytes.
BYTE = re.compile("<0x[0-9A-F]{2}>")


#: Decodes several sequences of tokens, special ones skipped.
Decode = Callable[[list[list[int]]], list[str]]


def decode_of(tokenizer: PreTrainedTokenizerBase) -> Decode:
    """Return how a tokenizer decodes several sequences of tokens at once.

    Where transformers adds nothing of its own, the tokenizers library decodes them, which lets other
    threads run meanwhile: a single sequence's decoding holds the interpreter.
    """

    def one_by_one(sequences: list[list[int]]) -> list[str]:
        return [_decode(tokenizer, ids) for ids in sequences]

    plain = (
        isinstance(tokenizer, PreTrainedTokenizerFast)
        and type(tokenizer)._decode is PreTrainedTokenizerFast._decode
        and type(tokenizer).decode is PreTrainedTokenizerBase.decode
        and not tokenizer.clean_up_tokenization_spaces
    )
    if not plain:
        return one_by_one
    backend: Any = tokenizer.backend_tokenizer

    def together(sequences: list[list[int]]) -> list[str]:
        found: list[str] = backend.decode_batch(sequences, skip_special_tokens=True)
        return found

    return together


def _decode(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    text = tokenizer.decode(ids, skip_special_tokens=True)
    assert isinstance(text, str)  # noqa: S101 (a list of lists would give a list)
    return text


class Detokenizer:
    """Decodes one sequence of tokens piece by piece.

    A token's text can depend on the one before it (leading spaces), and a character can
    take several tokens. So each piece is the difference between two decodings that start
    at the same, earlier token, and it is held back while it ends in half a character, or in a byte
    token: the next byte may spoil a character that is whole.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self.ids: list[int] = []
        #: The pieces so far.
        self.deltas: list[str] = []
        self._context = 0  # where the decodings start
        self._read = 0  # up to where the text has been handed out

    def push(self, token: int) -> str:
        """Add a token and return the text it completes; often empty."""
        return self.extend([token])

    def extend(self, tokens: list[int]) -> str:
        """Add several tokens and return the text they complete as one piece."""
        before, both = self.begin(tokens)
        return self.complete(_decode(self._tokenizer, before), _decode(self._tokenizer, both))

    def begin(self, tokens: list[int]) -> tuple[list[int], list[int]]:
        """Add several tokens, for those who decode many sequences together.

        Returns:
            what is to be decoded for `complete`: the tokens before the new piece, and with it.
        """
        self.ids += tokens
        return self.ids[self._context : self._read], self.ids[self._context :]

    def complete(self, before: str, text: str) -> str:
        """Return the text that the tokens complete as one piece, given what `begin` asked for."""
        if len(text) <= len(before) or text.endswith(REPLACEMENT) or self._in_bytes():
            return ""
        self._context, self._read = self._read, len(self.ids)
        self.deltas.append(text[len(before) :])
        return self.deltas[-1]

    def _in_bytes(self) -> bool:
        token = self._tokenizer.convert_ids_to_tokens(self.ids[-1])
        return isinstance(token, str) and BYTE.fullmatch(token) is not None

    def finish(self, text: str | None = None) -> tuple[str, str]:
        """Return the whole text, exactly as the tokenizer decodes it, and its last piece.

        Args:
            text: the whole text, if it is decoded already.
        """
        if text is None:
            text = _decode(self._tokenizer, self.ids)
        streamed = "".join(self.deltas)
        if not text.startswith(streamed):
            # A decoder that rewrites earlier text (clean-up of spaces): the whole counts. The
            # number of pieces stays, since events were counted by it.
            self.deltas = [text] + [""] * (len(self.deltas) - 1)
            return text, ""
        rest = text[len(streamed) :]
        if rest:
            self.deltas.append(rest)
        return text, rest
