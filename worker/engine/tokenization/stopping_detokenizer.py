"""Decodes token ids incrementally, up to the first stop string."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from worker.engine.tokenization.detokenizer import Detokenizer, add_rest, decode
from worker.engine.tokenization.stop_strings import StopStrings


class StoppingDetokenizer:
    """Decodes one sequence as `Detokenizer` does, up to the first stop string."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._detokenizer = Detokenizer(tokenizer)
        self._stop = stop
        self._strings = StopStrings(stop)
        #: What `begin` returned.
        self._prefix_ids: list[int] = []
        self._extended_ids: list[int] = []
        #: The deltas so far.
        self.deltas: list[str] = []

    @property
    def stopped(self) -> bool:
        """Whether a stop string ended the text."""
        return self._strings.found

    @property
    def token_ids(self) -> list[int]:
        """The tokens so far; none after the one that completed the stop string."""
        return self._detokenizer.token_ids

    def push(self, token_id: int) -> str:
        """Add a token and return the text that it completes; often empty."""
        prefix, extended = self.begin([token_id])
        return self.complete(decode(self._tokenizer, prefix), decode(self._tokenizer, extended))

    def begin(self, token_ids: list[int]) -> tuple[list[int], list[int]]:
        """Add tokens, as `Detokenizer.begin`."""
        self._prefix_ids, self._extended_ids = self._detokenizer.begin(token_ids)
        return self._prefix_ids, self._extended_ids

    def complete(self, prefix: str, extended: str) -> str:
        """Return the text that the new tokens complete and that is final, as one delta.

        Args:
            prefix: as of `Detokenizer.complete`.
            extended: (the same)
        """
        held = self._strings.held
        delta = self._strings.push(self._detokenizer.complete(prefix, extended))
        if self.stopped:
            self._drop_later_tokens(held, prefix)
        if delta:
            self.deltas.append(delta)
        return delta

    def _drop_later_tokens(self, held: str, prefix: str) -> None:
        """Drop the tokens after the one that completed the stop string, which came in the same delta.

        Args:
            held: the text that was held back before the delta.
            prefix: the decoded context before the delta.
        """
        for later in range(len(self._extended_ids) - len(self._prefix_ids) - 1, 0, -1):
            text = decode(self._tokenizer, self._extended_ids[:-later])
            if any(stop in held + text[len(prefix) :] for stop in self._stop):
                del self.token_ids[-later:]
                return

    def finish(self, text: str | None = None, *, cut: bool = False) -> tuple[str, str]:
        """Return the whole text, and its last delta.

        Args:
            text: all tokens, decoded, if that is done already.
            cut: whether more tokens would have followed. Then a character that is not whole is no stop string yet.
        """
        if self.stopped:
            return "".join(self.deltas), ""
        text, _ = self._detokenizer.finish(text)
        # The last tokens can complete a stop string, as the bytes of a character that was not whole.
        strings = StopStrings(self._stop)
        before = text if cut else strings.push(text)
        if strings.found:
            self._drop_later_tokens(self._strings.held, decode(self._tokenizer, self._prefix_ids))
            self._strings, text = strings, before
        return text, add_rest(self.deltas, text)


def make_detokenizer(
    tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]
) -> Detokenizer | StoppingDetokenizer:
    """Return what decodes one sequence.

    Args:
        tokenizer: the base's.
        stop: the strings that end its text; none is empty.
    """
    return StoppingDetokenizer(tokenizer, stop) if stop else Detokenizer(tokenizer)
