"""Searching for the jobs that match a query best.

The newest `RANKED` matches are ranked, and come before all others; then the next ones.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from jobs.database import Database
from jobs.errors import CursorError
from jobs.search.ranking import score
from jobs.statements import search
from jobs.statements.documents import LAST_ID
from jobs.use_cases.search_request import FoundPage, Range, SearchRequest, wanted

#: The number of matches that are ranked together, the newest first.
RANKED = 200


@dataclass(frozen=True)
class _RankCursor:
    """Where a page of ranked documents begins, and the range that is ranked, so that jobs that end meanwhile move no others.

    ``rank_FIRST_END_RANK_ID`` is the place after a document in the same ranking. ``rank_FIRST_END`` is the beginning
    of the next one.
    """

    first: int
    end: int
    #: Rank and id of the document, both negative, so that the best and newest come first.
    last: tuple[int, int] | None

    @classmethod
    def parse(cls, cursor: str) -> _RankCursor:
        match = re.fullmatch(r"rank_(\d{1,19})_(\d{1,19})(?:_(\d{1,12})_(\d{1,19}))?", cursor)
        if match is None or max(int(match[1]), int(match[2])) > LAST_ID:
            raise CursorError(cursor)
        last = None if match[3] is None else (-int(match[3]), -int(match[4]))
        return cls(int(match[1]), int(match[2]), last)

    def __str__(self) -> str:
        cursor = f"rank_{self.first}_{self.end}"
        return cursor if self.last is None else f"{cursor}_{-self.last[0]}_{-self.last[1]}"


def search_by_rank(database: Database, request: SearchRequest) -> FoundPage:
    """Return a page of jobs, those that match best first.

    Raises:
        CursorError: ``request.after`` is not what a page of such a list has.
    """
    query = request.filters.query
    assert query is not None  # noqa: S101 (the web orders by rank only with a query)
    bounds = Range.of(request)
    first, end, last = bounds.first, bounds.end, None
    ranked, effort = RANKED, request.effort
    if request.after is not None:
        cursor = _RankCursor.parse(request.after)
        end, last = min(end, cursor.end), cursor.last
        if last is not None:
            first = max(first, cursor.first)
            # Rank the same jobs again, and also those that ended since.
            ranked, effort = 2 * RANKED, LAST_ID
    with database.read() as connection:
        found = search.find(
            connection,
            wanted(connection, request),
            first=first,
            end=end,
            limit=ranked,
            effort=effort,
        )
        words = search.words_of(connection, found.ids)
    keys = sorted((-score(query, text), -i) for i, text in words.items())
    low = first
    if last is None and len(found.ids) == RANKED:
        low = found.ids[-1]
    elif found.stopped_at is not None:
        low = found.stopped_at
    if last is not None:
        keys = [key for key in keys if key > last]
    shown = keys[: request.limit]
    following = None
    if len(keys) > request.limit:
        following = _RankCursor(low, found.ids[0] + 1, shown[-1])
    elif low > bounds.first:
        following = _RankCursor(bounds.first, low, None)
    return FoundPage([-i for _, i in shown], None if following is None else str(following))
