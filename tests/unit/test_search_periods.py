"""How a search on PostgreSQL goes through its periods: what it finds, and what the index reads for it."""

from __future__ import annotations

import bisect
import random
from collections.abc import Sequence

import pytest

from jobs.statements.search_estimate import MatchEstimate, ids_per_document
from jobs.statements.search_periods import EVERYTHING, PROBE, IdRange, SearchPeriods, length

SECOND = 1_000_000 << 11
DAY = 86_400 * SECOND
#: The end of periods of all lengths.
NOW = length(EVERYTHING - 1) * 99
MOST = 2000
LIMIT = 20


class _Index:
    """Ids of matching documents, as the index returns them, and what it reads to find them.

    There are no other documents unless ``among_others``.
    """

    def __init__(self, ids: Sequence[int], *, among_others: bool = False) -> None:
        self.ids = sorted(ids)
        self.among_others = among_others
        self.reads = 0
        self.entries = 0

    def search(self, periods: SearchPeriods) -> list[int]:
        """Return the first `LIMIT` ids of a range, found as `jobs.statements.search_candidates` does."""
        found: list[int] = []
        left = periods.left
        while left and len(found) < LIMIT:
            low, high = periods.period()
            self.reads += 1
            ids = self._between(low, high)
            if periods.level == EVERYTHING:
                self.entries += len(self.ids)
            else:
                # The index intersects the whole period with the query.
                start = low // length(periods.level) * length(periods.level)
                self.entries += len(self._between(start, start + length(periods.level)))
            ids.sort(reverse=left.newest_first)
            place = periods.end_of_period()
            if len(ids) >= MOST:
                if periods.level > 0:
                    periods.shorten()
                    continue
                ids = ids[:MOST]
                place = left.after(ids[-1])
            found += ids
            if ids or periods.level == EVERYTHING:
                periods.advance(place, len(ids))
            else:
                periods.skip(self._documents(left))
        return found[:LIMIT]

    def _documents(self, left: IdRange) -> list[int]:
        if self.among_others:
            last = min(PROBE, left.end - left.first)
            return [left.end - 1 - n if left.newest_first else left.first + n for n in range(last)]
        ids = self._between(left.first, left.end)
        return ids[: -PROBE - 1 : -1] if left.newest_first else ids[:PROBE]

    def _between(self, low: int, high: int) -> list[int]:
        return self.ids[bisect.bisect_left(self.ids, low) : bisect.bisect_left(self.ids, high)]


def _even(count: int, distance: int, newest: int = NOW) -> list[int]:
    return [newest - number * distance for number in range(count)]


_SEEDED = random.Random(7)
HISTORIES = {
    "each second": _even(20_000, SECOND),
    "after the end of a period": _even(20_000, SECOND, NOW + SECOND // 2),
    "before the end of a period": _even(20_000, SECOND, NOW - SECOND // 2),
    "a year before all others": [*_even(20_000, SECOND), NOW - 365 * DAY],
    "a year after all others": [*_even(20_000, SECOND, NOW - 365 * DAY), NOW],
    "each hour of ten years": _even(87_600, 3600 * SECOND),
    "few in ten years": _even(150, 24 * DAY),
    "days of work": [
        NOW - day * DAY - _SEEDED.randrange(8 * 3600 * SECOND)
        for day in range(0, 700, 7)
        for _ in range(300)
    ],
}


def _search(index: _Index, estimate: float, *, newest_first: bool) -> None:
    """Search for the first matches of all, whose number is estimated so many times too high."""
    ids = sorted(index.ids, reverse=newest_first)
    left = IdRange(index.ids[0], index.ids[-1] + 1, newest_first)
    expected = MatchEstimate(
        matches=len(ids) * estimate,
        documents=len(ids),
        span=index.ids[-1] + 1 - index.ids[0],
        ids_per_document=ids_per_document(ids[:PROBE]),
    )
    periods = SearchPeriods(left, expected, LIMIT, MOST)
    periods.begin(is_short=False)
    assert index.search(periods) == ids[:LIMIT]


@pytest.mark.parametrize("newest_first", [True, False])
@pytest.mark.parametrize("estimate", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("name", HISTORIES)
def test_a_search_finds_the_first_matches_with_few_reads(
    name: str, estimate: float, newest_first: bool
) -> None:
    index = _Index(HISTORIES[name])
    _search(index, estimate, newest_first=newest_first)
    assert index.reads <= 8
    # Estimated as rare, matches are searched without periods.
    assert index.entries <= 2 * MOST + (2 * len(index.ids) if estimate < 1 else 0)


@pytest.mark.parametrize("name", ["a year before all others", "a year after all others"])
def test_matches_a_year_away_from_others_cost_more_reads_and_few_of_all(name: str) -> None:
    """Other documents fill the year, so that it cannot be skipped."""
    index = _Index(HISTORIES[name], among_others=True)
    _search(index, 1.0, newest_first=name.endswith("after all others"))
    assert index.reads < 60
    assert index.entries < 8 * len(index.ids)


def test_rare_matches_are_searched_without_periods_once_the_history_shows_it() -> None:
    """Documents of a frequent word's periods are not all read for a query that hardly any matches."""
    index = _Index([NOW - 3000 * DAY], among_others=True)
    left = IdRange(NOW - 3650 * DAY, NOW, newest_first=True)
    expected = MatchEstimate(1e7, documents=1e8, span=3650 * DAY, ids_per_document=SECOND / 10)
    periods = SearchPeriods(left, expected, 1, MOST, level=2)
    assert index.search(periods) == index.ids
    assert periods.level == EVERYTHING
    assert index.reads < 20


def test_a_range_of_few_documents_is_searched_in_the_period_of_its_length() -> None:
    index = _Index(_even(20_000, SECOND))
    left = IdRange(NOW - 30 * SECOND, NOW + 1, newest_first=True)
    periods = SearchPeriods(left, MatchEstimate(2e4, span=NOW), LIMIT, MOST)
    periods.begin(is_short=True)
    assert index.search(periods) == _even(LIMIT, SECOND)
    assert index.entries < 100


def test_no_period_is_read_again_at_a_length_that_had_too_many() -> None:
    left = IdRange(0, NOW, newest_first=True)
    periods = SearchPeriods(left, MatchEstimate(span=NOW), 1, MOST, level=6)
    low, high = periods.period()
    periods.shorten()
    while left.end > low:
        assert periods.level < 6
        periods.advance(periods.end_of_period(), 0)
    assert periods.level >= 6, "beyond it, periods are longer again"
    assert high == NOW


@pytest.mark.parametrize("newest_first", [True, False])
def test_a_gap_is_skipped(newest_first: bool) -> None:
    """The few documents before it tell little: if the next period were longer, it would be read for nothing."""
    end = NOW if newest_first else 2 * NOW
    left = IdRange(end - NOW, end, newest_first)
    expected = MatchEstimate(2e4, documents=2e4, span=NOW, ids_per_document=SECOND)
    periods = SearchPeriods(left, expected, 1, MOST, level=2)
    others = [end - NOW + DAY, end - NOW + DAY + 1]
    if newest_first:
        others = [end - 1 - DAY, end - 2 - DAY]
    periods.skip([end - 1 if newest_first else end - NOW, *others])
    assert periods.level == 2
    assert left.place == left.before(others[0])
    periods.skip(others)
    assert not left
