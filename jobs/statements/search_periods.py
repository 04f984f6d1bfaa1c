"""Chooses the periods that a search goes through on PostgreSQL, from one end of a range to the other.

An index read costs about the matches in its period, even if the range has only a part of it. So periods should have
about as many matches as are needed: with fewer there are many reads, with more than the maximum one is for nothing. How
many there are is expected from `jobs.statements.search_estimate`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from jobs.statements.documents import PERIODS, TIE_BITS
from jobs.statements.search_estimate import MatchEstimate

#: The level of a search without a period. Other levels are indexes of `PERIODS`.
EVERYTHING = len(PERIODS)
#: The number of documents from which the density of a range is estimated.
PROBE = 64
#: The maximum share of the searched ids that a period may have. Beyond it all is searched at once: reading the
#: documents of the period's term would cost more than it saves.
_MAX_SHARE = 1 / 4
#: A longer period is chosen only if it is likely to have at most this share of the maximum number of matches, and this
#: many times the number that are needed, or some at least.
_FULL, _SPARE, _SOME = 0.7, 6, 500


@dataclass
class IdRange:
    """What a search has left of a range of documents: ids from ``first`` on, below ``end``.

    A place in it is the id of the next document; or, if the newest come first, the one above it.
    """

    first: int
    end: int
    newest_first: bool

    def __bool__(self) -> bool:
        """Whether anything is left."""
        return not self.is_end(self.place)

    @property
    def place(self) -> int:
        """Where the search goes on."""
        return self.end if self.newest_first else self.first

    @place.setter
    def place(self, place: int) -> None:
        if self.newest_first:
            self.end = place
        else:
            self.first = place

    @property
    def last_place(self) -> int:
        """Where nothing is left."""
        return self.first if self.newest_first else self.end

    def is_end(self, place: int) -> bool:
        """Return whether nothing is left from a place on."""
        return place <= self.first if self.newest_first else place >= self.end

    def before(self, document_id: int) -> int:
        """Return the place from which a document is the next one."""
        return document_id + 1 if self.newest_first else document_id

    def after(self, document_id: int) -> int:
        """Return the place that leaves a document behind."""
        return document_id if self.newest_first else document_id + 1


def length(level: int) -> int:
    """Return the number of possible ids of documents in a period."""
    return 1 << PERIODS[level] + TIE_BITS


def _level_of(ids: float) -> int:
    """Return the level of the shortest periods with at least this many possible ids; `EVERYTHING` if there is none."""
    return next((level for level in range(EVERYTHING) if length(level) >= ids), EVERYTHING)


class _TooLong(NamedTuple):
    """A period with more than the maximum of matches."""

    level: int
    #: The place where the search leaves it.
    end: int


@dataclass
class SearchPeriods:
    """How long the next period is.

    Args:
        left: what is left of the range.
        estimate: of the number of matches.
        limit: the number of matches that are still needed.
        most: the maximum number of matches that are read at once.
        level: of the next period.
        levels_back: by how many levels to shorten a period with too many matches.
    """

    left: IdRange
    estimate: MatchEstimate
    limit: int
    most: int
    level: int = EVERYTHING
    levels_back: int = 4
    _too_long: list[_TooLong] = field(default_factory=list)

    def begin(self, *, is_short: bool) -> None:
        """Choose the first period.

        Args:
            is_short: whether the range has few documents.
        """
        matches = self.estimate.matches
        if matches <= self.most / 4:
            self.level = EVERYTHING
        elif is_short:
            self.level = _level_of(self.left.end - self.left.first)
        else:
            self.level = _level_of(1.5 * self.limit * self.estimate.ids_per_match)
            if self._is_too_long(self.level) and matches <= self.most / 2:
                self.level = EVERYTHING

    def period(self) -> tuple[int, int]:
        """Return the part of the range that is in the next period: the lowest id, and the id after the highest one."""
        left = self.left
        if self.level == EVERYTHING:
            return left.first, left.end
        ids = length(self.level)
        if left.newest_first:
            return max(left.first, (left.end - 1) // ids * ids), left.end
        return left.first, min(left.end, (left.first // ids + 1) * ids)

    def end_of_period(self) -> int:
        """Return the place where the search leaves the next period."""
        low, high = self.period()
        return low if self.left.newest_first else high

    def shorten(self) -> None:
        """Choose shorter periods, for one that had more than the maximum of matches, which were read for nothing."""
        self._too_long.append(_TooLong(self.level, self.end_of_period()))
        self.estimate.matches = max(self.estimate.matches, self.most)
        self.level = max(0, self.level - self.levels_back)
        while self.level and self._is_too_long(self.level):
            self.level -= 1

    def advance(self, place: int, matches: int) -> None:
        """Note that the next period was searched up to a place, and choose longer ones if it had few matches."""
        self.estimate.searched += abs(place - self.left.place)
        self.estimate.found += matches
        self._go_on_at(place)
        if 4 * matches < self.most:
            self._lengthen(matches)

    def skip(self, ids: Sequence[int]) -> None:
        """Note that the next period has no match, and go on at the next document: a history may have gaps of years.

        A period with a few documents tells little about the next ones.

        Args:
            ids: those of the first documents that are left, in the order of the search: `PROBE`, or all if there are
                fewer.
        """
        low, high = self.period()
        within = sum(low <= document_id < high for document_id in ids)
        if within == PROBE:
            self.advance(self.end_of_period(), 0)
            return
        likely = round(within * self.estimate.ids_per_document)
        self.estimate.searched += min(high - low, likely)
        has_next = within < len(ids)
        self._go_on_at(self.left.before(ids[within]) if has_next else self.left.last_place)
        if within:
            self._lengthen(0)

    def _go_on_at(self, place: int) -> None:
        self.left.place = place
        while self._too_long and self._has_left(self._too_long[-1]):
            self._too_long.pop()

    def _has_left(self, period: _TooLong) -> bool:
        place = self.left.place
        return place <= period.end if self.left.newest_first else place >= period.end

    def _is_too_long(self, level: int) -> bool:
        """Return whether a level's periods are too long to be worth it, so that all is searched at once."""
        return level >= EVERYTHING or length(level) > _MAX_SHARE * (self.left.end - self.left.first)

    def _lengthen(self, matches: int) -> None:
        """Choose periods that are four times as long, or 16 times if the last one had no match.

        Not if longer ones are likely to have many more matches than are needed, or are within one that had more than the
        maximum.
        """
        longest = self.level + (1 if matches else 2)
        limit = self._too_long[-1].level - 1 if self._too_long else EVERYTHING
        # Without a period, the index reads the matches outside the range, too.
        is_rare = self.estimate.in_history < self.most / 2
        if is_rare and self._is_too_long(longest) and limit == EVERYTHING:
            self.level = EVERYTHING
            return
        longest = min(longest, limit, EVERYTHING - 1)
        likely = min(self.most * _FULL, max(self.limit * _SPARE, _SOME))
        while longest > self.level and self.estimate.matches_per_id * length(longest) > likely:
            longest -= 1
        self.level = max(self.level, longest)
