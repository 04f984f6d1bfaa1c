"""How many matches a search on PostgreSQL expects in a part of the history."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass
class MatchEstimate:
    """An estimate, which what was searched corrects.

    Args:
        matches: the estimated number of documents that match in the whole history.
        documents: the number of documents in the whole history.
        span: the number of possible ids of the whole history.
        ids_per_document: the number of possible ids for each document, in the part that is searched first.
        searched: the number of possible ids that were searched.
        found: the number of matches among them.
    """

    matches: float = 0.0
    documents: float = 0.0
    span: int = 0
    ids_per_document: float = 1.0
    searched: int = 0
    found: int = 0

    @property
    def ids_per_match(self) -> float:
        """The estimated number of possible ids for each match, in the part that is searched first."""
        return self.ids_per_document * self.documents / max(1.0, self.matches)

    @property
    def matches_per_id(self) -> float:
        """The expected number of matches for each possible id, near what was searched."""
        return self._corrected(self.ids_per_match)

    @property
    def in_history(self) -> float:
        """The expected number of matches in the whole history."""
        return self._corrected(self.span / max(self.matches, 1.0)) * self.span

    def _corrected(self, ids_per_match: float) -> float:
        """Return the expected number of matches for each possible id.

        The estimate counts like one match that was found, so that little evidence, such as a few seconds at the end of
        a period, changes it little.
        """
        return (self.found + 1) / (self.searched + ids_per_match)


def ids_per_document(ids: Sequence[int]) -> float:
    """Return how many possible ids there are for each document, from the ids of some in order.

    It is that of the denser half, since one of them may have a gap of years.
    """
    half = len(ids) // 2
    return (min(abs(ids[0] - ids[half]), abs(ids[half] - ids[-1])) + 1) / max(1, half)
