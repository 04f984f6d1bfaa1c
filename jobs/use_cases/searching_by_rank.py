"""Searching for the jobs that come first by a rank: how well they match, how much was changed, how long they took.

The newest `RANKED` matches are ranked, and come before all others; then the next ones. A number's buckets, which the
index has, are ranked one after another.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import sqlalchemy as sa

from jobs.database import Database
from jobs.enums import Order
from jobs.errors import NEXT_OR_ID, CursorError
from jobs.search import facets
from jobs.search.filters import IndexQuery
from jobs.search.query import Term
from jobs.search.ranking import score
from jobs.statements import search
from jobs.statements.documents import LAST_ID
from jobs.use_cases import search_request
from jobs.use_cases.search_request import FoundPage, Range, SearchRequest

#: The number of matches that are ranked together, the newest first.
RANKED = 200


@dataclass(frozen=True)
class _RankCursor:
    """Where a page of ranked documents begins, and the range that is ranked, so that jobs that end meanwhile move no others.

    ``rank_GROUP_FIRST_END_RANK_ID`` is the place after a document in the same ranking. ``rank_GROUP_FIRST_END`` is the
    beginning of the next one.
    """

    #: The index of a group of `_groups`.
    group: int
    first: int
    end: int
    #: Rank and id of the document, both negative, so that the best and newest come first.
    last: tuple[int, int] | None = None

    @classmethod
    def parse(cls, cursor: str) -> _RankCursor:
        pattern = r"rank_(\d{1,3})_(\d{1,19})_(\d{1,19})(?:_(\d{1,15})_(\d{1,19}))?"
        match = re.fullmatch(pattern, cursor)
        if match is None or max(int(match[2]), int(match[3])) > LAST_ID:
            raise CursorError(cursor, NEXT_OR_ID)
        last = None if match[4] is None else (-int(match[4]), -int(match[5]))
        return cls(int(match[1]), int(match[2]), int(match[3]), last)

    def __str__(self) -> str:
        cursor = f"rank_{self.group}_{self.first}_{self.end}"
        return cursor if self.last is None else f"{cursor}_{-self.last[0]}_{-self.last[1]}"


def _groups(request: SearchRequest) -> Sequence[Term]:
    """Return the terms of the groups of matches that are ranked by themselves, the best group first; none for one of all.

    Those of a number are its buckets, which the index has.
    """
    filters = request.filters
    match request.order:
        case Order.MOST_CHANGED:
            terms = facets.share_terms(filters.min_changed, filters.max_changed)
        case Order.LONGEST:
            terms = facets.duration_terms(filters.min_duration, filters.max_duration)
        case _:
            terms = []
    return terms[::-1]


def _ranks(connection: sa.Connection, request: SearchRequest, ids: Sequence[int]) -> dict[int, int]:
    """Return the ranks of documents, the highest for the best."""
    match request.order:
        case Order.MOST_CHANGED:
            shares = search.numbers_of(connection, ids, "changed")
            return {i: round(share * 10**9) for i, share in shares.items()}
        case Order.LONGEST:
            durations = search.numbers_of(connection, ids, "duration")
            return {i: round(seconds * 1000) for i, seconds in durations.items()}
    query = request.filters.query
    assert query is not None  # noqa: S101 (the web orders by relevance only with a query)
    return {i: score(query, text) for i, text in search.words_of(connection, ids).items()}


class _Ranked(NamedTuple):
    """Some matches of a group, in order."""

    ids: list[int]
    #: Where the next ones of the group begin; None if there are none.
    next: _RankCursor | None
    #: What is left of the effort.
    effort: int


def search_by_rank(database: Database, request: SearchRequest) -> FoundPage:
    """Return a page of jobs, the best first, one group after another.

    Raises:
        CursorError: ``request.after`` is not what a page of such a list has.
    """
    bounds, groups = Range.of(request), _groups(request)
    cursor = _RankCursor(0, bounds.first, bounds.end)
    if request.after is not None:
        cursor = _RankCursor.parse(request.after)
        if cursor.group >= max(1, len(groups)):
            raise CursorError(request.after, NEXT_OR_ID)
    ids: list[int] = []
    effort, num_empty = request.effort, 0
    with database.read() as connection:
        matching = _Groups(
            connection, search_request.index_query(connection, request), groups, bounds
        )
        while True:
            some = replace(request, limit=request.limit - len(ids), effort=effort)
            ranked = _rank_some(connection, some, matching.query(cursor.group), cursor)
            ids += ranked.ids
            effort = ranked.effort
            is_full = len(ids) == request.limit or effort <= 0
            if ranked.next is not None:
                cursor = ranked.next
            else:
                num_empty = 0 if ranked.ids else num_empty + 1
                group = matching.after(cursor.group, is_full=is_full, num_empty=num_empty)
                if group is None:
                    return FoundPage(ids, None)
                cursor = _RankCursor(group, bounds.first, bounds.end)
            if is_full:
                return FoundPage(ids, str(cursor))


@dataclass(frozen=True)
class _Groups:
    """The groups of the matches of a range, of which most may be empty."""

    connection: sa.Connection
    all: IndexQuery
    terms: Sequence[Term]
    within: Range

    def query(self, group: int) -> IndexQuery:
        """Return the query for the matches of a group."""
        return self.all.narrowed(self.terms[group : group + 1])

    def after(self, group: int, *, is_full: bool, num_empty: int) -> int | None:
        """Return the group to rank after another; None if no later one has a match.

        Args:
            group: the number of the other one.
            is_full: whether the next group is for another page.
            num_empty: how many groups in a row had no match, up to this one.
        """
        group += 1
        if is_full:
            # Documents are compared, so that the next page is rarely empty.
            return self._first_from(group, effort=search.MAX_EFFORT)
        if num_empty > 1:
            return self._first_from(group, effort=0)
        # To rank it takes no more queries than to look whether it has a match.
        return group if group < len(self.terms) else None

    def _first_from(self, group: int, *, effort: int) -> int | None:
        """Return the first group from one on that may have a match; None if there is none.

        A query for several groups costs about the same as for one. So it is for more and more groups until one may have
        a match, and then for half of them, and half of these.

        Args:
            group: the number of the first one to look at.
            effort: the maximum number of documents to compare in each query.
        """
        end, count = group, 1
        while self._are_empty(group, end, effort):
            if end >= len(self.terms):
                return None
            group, count = end, 2 * count
            end = min(group + count, len(self.terms))
        while end - group > 1:
            middle = (group + end) // 2
            if self._are_empty(group, middle, effort):
                group = middle
            else:
                end = middle
        return group

    def _are_empty(self, first: int, end: int, effort: int) -> bool:
        """Return whether no document of some groups matches. It may be unknown, and is then False."""
        if first == end:
            return True
        query, within = self.all.narrowed(self.terms[first:end]), self.within
        found = search.find(
            self.connection,
            query,
            first=within.first,
            end=within.end,
            limit=1,
            effort=effort,
        )
        return not found.ids and found.stopped_at is None


def _rank_some(
    connection: sa.Connection, request: SearchRequest, query: IndexQuery, cursor: _RankCursor
) -> _Ranked:
    """Rank matches of a group: the newest `RANKED` come before all others, then come the next ones."""
    bounds = Range.of(request)
    first, end = max(bounds.first, cursor.first), min(bounds.end, cursor.end)
    find = partial(search.find, connection, query, first=first, end=end)
    if cursor.last is None:
        found = find(limit=RANKED, effort=request.effort)
        low, effort = first, found.effort
        if len(found.ids) == RANKED:
            low = found.ids[-1]
        elif found.stopped_at is not None:
            low = found.stopped_at
    else:
        # The page before has ranked these. They are ranked again, with those that ended since.
        found = find(limit=2 * RANKED, effort=LAST_ID)
        low, effort = first, request.effort
    keys = sorted((-rank, -i) for i, rank in _ranks(connection, request, found.ids).items())
    if cursor.last is not None:
        keys = [key for key in keys if key > cursor.last]
    shown = keys[: request.limit]
    following = None
    if len(keys) > len(shown):
        following = _RankCursor(cursor.group, low, found.ids[0] + 1, shown[-1])
    elif low > bounds.first:
        following = _RankCursor(cursor.group, bounds.first, low)
    return _Ranked([-i for _, i in shown], following, effort)
