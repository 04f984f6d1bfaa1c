"""Decodes token ids incrementally, at boundaries of whole characters."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

#: What a tokenizer decodes an incomplete UTF-8 sequence to.
REPLACEMENT = "\ufffd"
#: A single byte, in vocabularies with byte fallback.
BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")

#: Decodes a batch of token id lists, without special tokens.
BatchDecode = Callable[[list[list[int]]], list[str]]


def batch_decoder(tokenizer: PreTrainedTokenizerBase) -> BatchDecode:
    """Return a function that decodes a batch as the tokenizer's ``decode`` does.

    Where transformers adds nothing of its own, the tokenizers library decodes the batch. That releases
    the GIL, which decoding a single sequence does not.
    """

    def one_by_one(sequences: list[list[int]]) -> list[str]:
        return [decode(tokenizer, token_ids) for token_ids in sequences]

    is_plain = (
        isinstance(tokenizer, PreTrainedTokenizerFast)
        and type(tokenizer)._decode is PreTrainedTokenizerFast._decode
        and type(tokenizer).decode is PreTrainedTokenizerBase.decode
        and not tokenizer.clean_up_tokenization_spaces
    )
    if not is_plain:
        return one_by_one
    backend: Any = tokenizer.backend_tokenizer

    def batched(sequences: list[list[int]]) -> list[str]:
        texts: list[str] = backend.decode_batch(sequences, skip_special_tokens=True)
        return texts

    return batched


def decode(tokenizer: PreTrainedTokenizerBase, token_ids: list[int]) -> str:
    """Return a list of token ids as text, without special tokens."""
    text = tokenizer.decode(token_ids, skip_special_tokens=True)
    assert isinstance(text, str)  # noqa: S101 (a list of lists would give a list)
    return text


def add_rest(deltas: list[str], text: str) -> str:
    """Add the rest of a whole text to its deltas so far, and return it; empty if there is none."""
    streamed = "".join(deltas)
    if not text.startswith(streamed):
        # A decoder that rewrites earlier text (clean-up of spaces). The whole text is right. The
        # number of deltas must not change, since events are numbered by it.
        deltas[:] = [text] + [""] * (len(deltas) - 1)
        return ""
    rest = text[len(streamed) :]
    if rest:
        deltas.append(rest)
    return rest


class Detokenizer:
    """Decodes one sequence incrementally.

    A token's text can depend on the token before it (leading spaces), and a character can take several
    tokens. So a delta is the difference between two decodings that start at the same, earlier token.
    It is held back while it ends in an incomplete character, or in a byte token: the next byte may
    invalidate a character that looks complete.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        #: Whether a stop string ended the text: not here, but in `StoppingDetokenizer`.
        self.stopped = False
        self.token_ids: list[int] = []
        #: The deltas so far.
        self.deltas: list[str] = []
        self._prefix_offset = 0  # first token of both decodings
        self._read_offset = 0  # tokens before it are part of a delta

    def push(self, token_id: int) -> str:
        """Add a token and return the text that it completes; often empty."""
        return self.extend([token_id])

    def extend(self, token_ids: list[int]) -> str:
        """Add tokens and return the text that they complete, as one delta."""
        prefix, extended = self.begin(token_ids)
        return self.complete(decode(self._tokenizer, prefix), decode(self._tokenizer, extended))

    def begin(self, token_ids: list[int]) -> tuple[list[int], list[int]]:
        """Add tokens; the caller decodes, in a batch with other sequences, and calls `complete`.

        Returns:
            token ids to decode: the context before the delta, and the context with the delta.
        """
        self.token_ids += token_ids
        return (
            self.token_ids[self._prefix_offset : self._read_offset],
            self.token_ids[self._prefix_offset :],
        )

    def complete(self, prefix: str, extended: str) -> str:
        """Return the text that the new tokens complete, as one delta.

        Args:
            prefix: the decoded first list of `begin`.
            extended: the decoded second list.
        """
        if len(extended) <= len(prefix) or extended.endswith(REPLACEMENT) or self._ends_in_byte():
            return ""
        self._prefix_offset, self._read_offset = self._read_offset, len(self.token_ids)
        self.deltas.append(extended[len(prefix) :])
        return self.deltas[-1]

    def _ends_in_byte(self) -> bool:
        token = self._tokenizer.convert_ids_to_tokens(self.token_ids[-1])
        return isinstance(token, str) and BYTE_TOKEN.fullmatch(token) is not None

    def finish(self, text: str | None = None, *, cut: bool = False) -> tuple[str, str]:  # noqa: ARG002 (see `cut`)
        """Return the whole text, exactly as the tokenizer decodes it, and its last delta.

        Args:
            text: the whole text, if it is decoded already.
            cut: whether more tokens would have followed; it makes a difference to `StoppingDetokenizer`.
        """
        if text is None:
            text = decode(self._tokenizer, self.token_ids)
        return text, add_rest(self.deltas, text)
