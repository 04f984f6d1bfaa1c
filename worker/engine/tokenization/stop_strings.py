"""Finds the first stop string in a text. Nothing here imports torch or transformers."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Finds the first stop string in a text that comes in pieces.

    The first is the one that is whole first; of several that end at the same character, the longest. So the end
    of a text does not depend on its pieces.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = stop
        #: The end of the text so far in which a stop string may begin.
        self.held = ""
        #: Whether one was found.
        self.found = False

    def push(self, piece: str) -> str:
        """Add a piece, and return the text that is before all stop strings.

        The end of a text is held back while a stop string may begin in it.
        """
        text = self.held + piece
        ends = [
            (start + len(stop), start) for stop in self._stop if (start := text.find(stop)) >= 0
        ]
        if ends:
            self.found, self.held = True, ""
            return text[: min(ends)[1]]
        held = max(_overlap(text, stop) for stop in self._stop)
        self.held = text[len(text) - held :]
        return text[: len(text) - held]

    def finish(self) -> str:
        """Return what was held back: no stop string follows."""
        held, self.held = self.held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of a text begin a stop string, but not the whole of it."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
