"""Chooses the periods that a search goes through on PostgreSQL, from one end of a range to the other.

An index read costs about the matches in its period, even if the range has only a part of it. So periods should have
about as many matches as are needed: with fewer there are many reads, with more than the maximum one is for nothing. How
many matches there are is estimated, and what was searched corrects the estimate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from jobs.statements.documents import PERIODS, TIE_BITS

#: The level of a search without a period.
EVERYTHING = len(PERIODS)
#: The number of documents from which the density of a range is estimated.
PROBE = 64
#: The maximum share of the searched ids that a period may have. Beyond it all is searched at once: reading the
#: documents of the period's term would cost more than it saves.
_MOST = 1 / 4
#: A longer period is chosen only if it is likely to have at most this share of the maximum number of matches, and this
#: many times the number that are needed, or some at least.
_FULL, _SPARE, _SOME = 0.7, 6, 500


def length(level: int) -> int:
    """Return the number of possible ids of documents in a period."""
    return 1 << PERIODS[level] + TIE_BITS


def ids_per_document(ids: Sequence[int]) -> float:
    """Return how many possible ids there are for each document, from the ids of some in order.

    It is that of the denser half, since one of them may have a gap of years.
    """
    half = len(ids) // 2
    return (min(abs(ids[0] - ids[half]), abs(ids[half] - ids[-1])) + 1) / max(1, half)


def _level_of(ids: float) -> int:
    """Return the level of the shortest periods with at least this many possible ids; `EVERYTHING` if there is none."""
    return next((level for level in range(EVERYTHING) if length(level) >= ids), EVERYTHING)


class _TooLong(NamedTuple):
    """A period with more than the maximum of matches."""

    level: int
    #: Where the search leaves it.
    end: int


@dataclass
class SearchPeriods:
    """What is left of a range, and how long the next period of it is.

    Args:
        first, end: the lowest id of the range, and the id after the highest one.
        newest_first: whether the search goes from the end to the beginning.
        level: of the next period.
        ids_per_document: the number of possible ids for each document, in the part that is searched first.
        documents: the number of documents in the whole history.
        matches: the expected number of those that match.
        span: the number of possible ids of the whole history.
        limit: the number of matches that are still needed.
        levels_back: by how many levels to shorten a period with too many matches.
    """

    first: int
    end: int
    newest_first: bool
    level: int = EVERYTHING
    ids_per_document: float = 1.0
    documents: float = 0.0
    matches: float = 0.0
    span: int = 0
    limit: int = 1
    levels_back: int = 4
    _searched: int = 0
    _found: int = 0
    _too_long: list[_TooLong] = field(default_factory=list)

    def __bool__(self) -> bool:
        """Whether anything is left."""
        return self.first < self.end

    def begin(self, most: int, *, is_short: bool) -> None:
        """Choose the first period.

        Args:
            most: the maximum number of matches that are read at once.
            is_short: whether the range has few documents.
        """
        if self.matches <= most / 4:
            self.level = EVERYTHING
        elif is_short:
            self.level = _level_of(self.end - self.first)
        else:
            self.level = _level_of(1.5 * self.limit * self._ids_per_match)
            if self._is_most(self.level) and self.matches <= most / 2:
                self.level = EVERYTHING

    def period(self) -> tuple[int, int]:
        """Return the part of the range that is in the next period: the lowest id, and the id after the highest one."""
        if self.level == EVERYTHING:
            return self.first, self.end
        ids = length(self.level)
        if self.newest_first:
            return max(self.first, (self.end - 1) // ids * ids), self.end
        return self.first, min(self.end, (self.first // ids + 1) * ids)

    def shorten(self, most: int) -> None:
        """Choose shorter periods, for one that had more than ``most`` matches, which were read for nothing."""
        low, high = self.period()
        self._too_long.append(_TooLong(self.level, low if self.newest_first else high))
        self.matches = max(self.matches, most)
        self.level = max(0, self.level - self.levels_back)
        while self.level and self._is_most(self.level):
            self.level -= 1

    def advance(self, low: int, high: int, matches: int, most: int) -> None:
        """Note that a part of the next period was searched, and choose longer periods if it had few matches.

        Args:
            low, high: its lowest id, and the id after its highest one.
            matches: how many it had.
            most: the maximum number of matches that are read at once.
        """
        self._searched += high - low
        self._found += matches
        self._go_on_at(low if self.newest_first else high)
        if 4 * matches < most:
            self._lengthen(matches, most)

    def skip(self, ids: Sequence[int], most: int) -> None:
        """Note that the next period has no match, and go on at the next document: a history may have gaps of years.

        A period with a few documents tells little about the next ones.

        Args:
            ids: those of the first documents that are left, in the order of the search: `PROBE`, or all if there are
                fewer.
            most: as in `advance`.
        """
        low, high = self.period()
        within = sum(low <= document_id < high for document_id in ids)
        if within == PROBE:
            self.advance(low, high, 0, most)
            return
        self._searched += round(min(high - low, within * self.ids_per_document))
        if within == len(ids):
            self._go_on_at(self.first if self.newest_first else self.end)
        else:
            self._go_on_at(ids[within] + 1 if self.newest_first else ids[within])
        if within:
            self._lengthen(0, most)

    def _go_on_at(self, place: int) -> None:
        if self.newest_first:
            self.end = place
        else:
            self.first = place
        while self._too_long and not self._is_in(self._too_long[-1]):
            self._too_long.pop()

    def _is_most(self, level: int) -> bool:
        """Return whether a level's periods are too long to be worth it, so that all is searched at once."""
        return level >= EVERYTHING or length(level) > _MOST * (self.end - self.first)

    def _is_in(self, period: _TooLong) -> bool:
        return self.end > period.end if self.newest_first else self.first < period.end

    def _lengthen(self, matches: int, most: int) -> None:
        """Choose periods that are four times as long, or 16 times if the last one had no match.

        Not if longer ones are likely to have many more matches than are needed, or are within one that had more than the
        maximum.
        """
        longest = self.level + (1 if matches else 2)
        limit = self._too_long[-1].level - 1 if self._too_long else EVERYTHING
        # Without a period, the index reads the matches outside the range, too.
        everywhere = self._rate(self.span / max(self.matches, 1.0)) * self.span
        if self._is_most(longest) and limit == EVERYTHING and everywhere < most / 2:
            self.level = EVERYTHING
            return
        longest = min(longest, limit, EVERYTHING - 1)
        rate = self._rate(self._ids_per_match)
        likely = min(most * _FULL, max(self.limit * _SPARE, _SOME))
        while longest > self.level and rate * length(longest) > likely:
            longest -= 1
        self.level = max(self.level, longest)

    @property
    def _ids_per_match(self) -> float:
        return self.ids_per_document * self.documents / max(1.0, self.matches)

    def _rate(self, ids_per_match: float) -> float:
        """Return the expected number of matches for each possible id.

        The estimate counts like one match that was found, so that little evidence, such as a few seconds at the end of
        a period, changes it little.
        """
        return (self._found + 1) / (self._searched + ids_per_match)
