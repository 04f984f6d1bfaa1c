"""Decodes token ids incrementally, up to the first stop string."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from worker.engine.tokenization.detokenizer import Detokenizer
from worker.engine.tokenization.stop_strings import StopStrings


class StoppingDetokenizer:
    """Decodes one sequence as `Detokenizer` does, up to the first stop string."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]) -> None:
        self._detokenizer = Detokenizer(tokenizer)
        self._stop = stop
        self._strings = StopStrings(stop)
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
        return self.extend([token_id])

    def extend(self, token_ids: list[int]) -> str:
        """Add tokens up to the end of a stop string, and return the text that they complete, as one delta."""
        delta = ""
        for token_id in token_ids:
            delta += self._strings.push(self._detokenizer.push(token_id))
            if self.stopped:
                break
        if delta:
            self.deltas.append(delta)
        return delta

    def finish(self, text: str | None = None, *, cut: bool = False) -> tuple[str, str]:
        """Return the whole text, and its last delta.

        Args:
            text: all tokens, decoded, if that is done already.
            cut: whether more tokens would have followed. Then a character that is not whole is no stop string yet.
        """
        streamed = "".join(self.deltas)
        if self.stopped:
            return streamed, ""
        text, _ = self._detokenizer.finish(text)
        # The last tokens can complete a stop string, as the bytes of a character that was not whole.
        strings = StopStrings(self._stop)
        before = text if cut else strings.push(text)
        if strings.found:
            self._strings, text = strings, before
        if not text.startswith(streamed):  # as in `Detokenizer.finish`
            self.deltas = [text] + [""] * (len(self.deltas) - 1)
            return text, ""
        rest = text[len(streamed) :]
        if rest:
            self.deltas.append(rest)
        return text, rest


def make_detokenizer(
    tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]
) -> Detokenizer | StoppingDetokenizer:
    """Return what decodes one sequence.

    Args:
        tokenizer: the base's.
        stop: the strings that end its text; none is empty.
    """
    return StoppingDetokenizer(tokenizer, stop) if stop else Detokenizer(tokenizer)
