"""The texts of a stage as they were streamed, over all of its attempts.

An attempt that follows one that was lost has the same seed. As a rule it generates the same text, and continues what
was streamed already. If it generates another one, as servers of models may, that text is streamed anew.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from jobs.models import Attempt, AttemptStatus
from jobs.use_cases.sweeping import WORKER_LOST

#: Statuses of attempts that hand in their text when they end. Without one, it is unknown.
_INTERRUPTED = (AttemptStatus.LOST, AttemptStatus.RELEASED, AttemptStatus.CANCELLED)


class Continuation:
    """Takes the pieces of an attempt whose first part may have been streamed already, for earlier attempts."""

    def __init__(self, earlier: str) -> None:
        """
        Args:
            earlier: the text that was streamed.
        """
        self._earlier = earlier
        self._position = 0
        #: Whether the attempt's text is another one.
        self.differs = False

    @property
    def repeats(self) -> bool:
        """Whether the attempt has not come to the end of what was streamed."""
        return self._position < len(self._earlier)

    def take(self, piece: str) -> str | None:
        """Take the next piece; return what is new of it, or None if nothing is."""
        if not self.repeats:
            return piece
        expected = self._earlier[self._position : self._position + len(piece)]
        if not piece.startswith(expected):
            self.differs = True
            return None
        self._position += len(piece)
        return piece[len(expected) :] or None


@dataclass
class StreamedText:
    """A text that was streamed. It has an output item of its own."""

    #: The first attempt that generated it.
    first: Attempt
    #: How many texts of the stage were streamed before it, in this run.
    number: int
    pieces: list[str]
    #: What the last attempt repeats of it.
    continuation: Continuation

    @property
    def text(self) -> str:
        return "".join(self.pieces)


def streamed_texts(
    attempts: Sequence[Attempt], pieces_of: Callable[[Attempt], Sequence[str]]
) -> list[StreamedText]:
    """Return the texts of a stage's attempts in one run, at least one: each is another than the one before.

    Args:
        attempts: at least one, in the order in which they started.
        pieces_of: returns the pieces of an attempt's text, as far as they are known.
    """
    texts = [StreamedText(attempts[0], 0, [], Continuation(""))]
    for attempt in attempts:
        pieces = pieces_of(attempt)
        last = texts[-1]
        last.continuation = continuation = Continuation(last.text)
        new = [continuation.take(piece) for piece in pieces]
        cut = attempt.status is AttemptStatus.FINISHED and continuation.repeats
        if continuation.differs or cut:
            texts.append(StreamedText(attempt, len(texts), [*pieces], Continuation("")))
        else:
            last.pieces += [piece for piece in new if piece is not None]
        if attempt.status is AttemptStatus.FINISHED:
            break
    return texts


def stored_pieces(attempt: Attempt, live: Mapping[str, Sequence[str]]) -> Sequence[str]:
    """Return the pieces of an attempt's text, as far as they are known.

    Args:
        attempt: any.
        live: the pieces so far of running attempts, by the ids of their texts.
    """
    if attempt.status is AttemptStatus.RUNNING:
        return live.get(attempt.text_id, ())
    text = attempt.output or ""
    if attempt.delta_lengths is None:  # An imported text is one piece.
        return [text] if text else []
    ends = list(itertools.accumulate(attempt.delta_lengths))
    return [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def is_unknown(attempt: Attempt) -> bool:
    """Return whether an attempt may have streamed a text that is stored nowhere."""
    return attempt.output is None and (
        attempt.status in _INTERRUPTED or attempt.error == WORKER_LOST
    )


def item_attempt(attempts: Sequence[Attempt]) -> Attempt | None:
    """Return the attempt that the output item of a finished stage is named after.

    Args:
        attempts: at this stage in one run, in the order in which they started.

    Returns:
        None for the first item of the stage in this run, whose name needs no attempt.
    """
    if len(attempts) == 1:
        return None
    text = streamed_texts(attempts, _whole)[-1]
    return text.first if text.number else None


def _whole(attempt: Attempt) -> Sequence[str]:
    """Return an attempt's text as one piece: where texts differ does not depend on the pieces."""
    return () if attempt.output is None else (attempt.output,)
