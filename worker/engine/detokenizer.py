"""Text out of tokens while they come, at boundaries where characters are whole."""

from __future__ import annotations

import re

from transformers import PreTrainedTokenizerBase

#: What a tokenizer decodes an unfinished UTF-8 sequence to.
REPLACEMENT = "\ufffd"
#: A single byte, in vocabularies that fall back to bytes.
BYTE = re.compile("<0x[0-9A-F]{2}>")


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

    def _decode(self, ids: list[int]) -> str:
        text = self._tokenizer.decode(ids, skip_special_tokens=True)
        assert isinstance(text, str)  # noqa: S101 (a list of lists would give a list)
        return text

    def push(self, token: int) -> str:
        """Add a token and return the text it completes; often empty."""
        return self.extend([token])

    def extend(self, tokens: list[int]) -> str:
        """Add several tokens and return the text they complete as one piece."""
        if not tokens:
            return ""
        self.ids += tokens
        before = self._decode(self.ids[self._context : self._read])
        text = self._decode(self.ids[self._context :])
        if len(text) <= len(before) or text.endswith(REPLACEMENT) or self._in_bytes():
            return ""
        self._context, self._read = self._read, len(self.ids)
        self.deltas.append(text[len(before) :])
        return self.deltas[-1]

    def _in_bytes(self) -> bool:
        token = self._tokenizer.convert_ids_to_tokens(self.ids[-1])
        return isinstance(token, str) and BYTE.fullmatch(token) is not None

    def finish(self) -> tuple[str, str]:
        """Return the whole text, exactly as the tokenizer decodes it, and its last piece."""
        text = self._decode(self.ids)
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
