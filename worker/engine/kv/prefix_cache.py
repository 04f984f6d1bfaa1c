"""Which prompts the rows of the cache hold, and what of them a new prompt can take over.

The prompts of a role begin alike, with the system prompt as a rule, and their keys and values are
alike for as long as the tokens are: they are computed once and copied. Adapters change keys and
values, so nothing is shared between roles.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

#: No token and no adapter.
NONE = -1
#: Tokens that a row must have in common with a prompt beyond what others have, to be worth more than
#: its place.
ALONE = 64


@dataclass(frozen=True)
class Place:
    """Where a prompt goes, and what is there for it already."""

    row: int
    #: The row that holds the prompt's first tokens; `row` itself if nothing is to be copied.
    source: int
    #: How many tokens it holds.
    length: int


class Prefixes:
    """The prompts in the cache's rows, those of sequences that ended included."""

    def __init__(self, rows: int, context: int, adapters: int) -> None:
        """
        Args:
            rows: of the cache.
            context: the most tokens in one.
            adapters: how many there are.
        """
        self._tokens = np.full((rows, context), NONE, dtype=np.int64)
        self._adapters = np.full(rows, NONE)
        self._lengths = np.zeros(rows, dtype=np.int64)
        #: Where the rows of each adapter gather, so that attention over them passes no others.
        self._anchors = [round(i * (rows - 1) / max(1, adapters - 1)) for i in range(adapters)]

    def place(self, adapter: int, prompt: Sequence[int], free: Collection[int]) -> Place:
        """Choose one of the free rows for a prompt, and what to take over into it.

        From then on the row counts as holding that, and no more.

        Args:
            adapter: index of the prompt's adapter.
            prompt: its tokens.
            free: rows that no sequence uses; at least one.
        """
        shared = self._shared(adapter, prompt)
        longest = int(shared.max())
        row = min(free, key=lambda row: self._worth(row, adapter))
        holder = int(shared.argmax())
        others = np.delete(shared, holder).max(initial=0)
        if holder in free and longest - others >= ALONE:
            row = holder  # only there is so much of it: anywhere else it would be lost, or copied
        source = row if shared[row] == longest else int(shared.argmax())
        place = Place(row, source, longest)
        self._tokens[place.row] = NONE
        self.record(place.row, adapter, 0, prompt[: place.length])
        return place

    def common(self, rows: Sequence[int]) -> int:
        """Count the tokens that the prompts in all of these rows, of one adapter, begin with."""
        end = int(self._lengths[rows].min())
        same = (self._tokens[rows, :end] == self._tokens[rows[0], :end]).all(axis=0)
        return end if same.all() else int(same.argmin())

    def record(self, row: int, adapter: int, start: int, tokens: Sequence[int]) -> None:
        """Note that a row's keys and values from ``start`` on are those of ``tokens``."""
        end = start + len(tokens)
        self._tokens[row, start:end] = tokens
        self._adapters[row] = adapter
        self._lengths[row] = end

    def forget(self, row: int) -> None:
        """Never take anything over from a row: what is in it may be damaged."""
        self._adapters[row] = NONE
        self._lengths[row] = 0
        self._tokens[row] = NONE

    def _shared(self, adapter: int, prompt: Sequence[int]) -> np.ndarray:
        """Count for each row the tokens that it has in common with the prompt's beginning.

        The prompt's last token never counts: its scores are wanted, so it is always computed.
        """
        found = np.zeros(len(self._adapters), dtype=np.int64)
        rows = np.flatnonzero(self._adapters == adapter)
        end = min(len(prompt) - 1, int(self._lengths[rows].max(initial=0)))
        if end > 0:
            differ = self._tokens[rows, :end] != np.asarray(prompt[:end])
            found[rows] = np.where(differ.any(axis=1), differ.argmax(axis=1), end)
        return found

    def _worth(self, row: int, adapter: int) -> tuple[bool, int]:
        """Order free rows: the last one of another adapter is kept longest, the nearest goes first."""
        other = self._adapters[row]
        last = other not in (NONE, adapter) and np.count_nonzero(self._adapters == other) == 1
        return bool(last), abs(row - self._anchors[adapter])
