"""Searching for jobs by age: those that the search index has, and those that have not ended, which it lacks.

Open jobs are few, and metadata, the API key, the batch and a missing rating are the only filters of the index that
they can meet, so they are compared one by one.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import sqlalchemy as sa

from jobs.database import Database
from jobs.errors import NEXT_OR_ID, CursorError, JobNotFoundError
from jobs.models import Status
from jobs.statements import documents, found_documents, job_lists, jobs, search
from jobs.statements.documents import LAST_ID
from jobs.times import MICROSECOND
from jobs.use_cases.search_request import FoundPage, Range, SearchRequest, index_query

#: The maximum number of open jobs that a page compares, in about ten milliseconds.
MAX_UNFINISHED = 2000


def search_by_age(database: Database, request: SearchRequest) -> FoundPage:
    """Return a page of jobs, the newest first or the oldest.

    Raises:
        CursorError: ``request.after`` is not what a page of such a list has.
    """
    within = Range.of(request)
    with database.read() as connection:
        if request.after is not None:
            within = within.beyond(_place(connection, request.owner, request.after))
        unfinished = _unfinished(connection, request, within)
        last = unfinished.last
        if last is not None:
            within = within.up_to(last)
        found = search.find(
            connection,
            index_query(connection, request),
            first=within.first,
            end=within.end,
            newest_first=within.newest_first,
            limit=request.limit + 1,
            effort=request.effort,
        )
    if found.stopped_at is not None:
        last = found.stopped_at if within.newest_first else found.stopped_at - 1
        within = within.up_to(last)
    some = {place: job_id for place, job_id in unfinished.matching.items() if place in within}
    ids = sorted({*found.ids, *some}, reverse=within.newest_first)
    if len(ids) > request.limit:
        ids = ids[: request.limit]
        last = ids[-1]
    return FoundPage(ids, None if last is None else f"pos_{last}", some)


def _place(connection: sa.Connection, owner: str | None, after: str) -> int:
    """Return the document after which a page begins."""
    match = re.fullmatch(r"pos_(\d{1,19})", after)
    if match:
        place: int | None = int(match[1])
    else:
        try:
            jobs.check_id(after)
        except JobNotFoundError:
            raise CursorError(after, NEXT_OR_ID) from None
        place = found_documents.id_of(connection, owner, after)
    if place is None or place > LAST_ID:
        raise CursorError(after, NEXT_OR_ID)
    return place


class _Unfinished(NamedTuple):
    """Jobs that have not ended."""

    #: Those that match, by the ids that their documents will have.
    matching: dict[int, str]
    #: The id of the last one that was looked at, if there may be more.
    last: int | None


def _unfinished(connection: sa.Connection, request: SearchRequest, within: Range) -> _Unfinished:
    """Look through jobs that have not ended, up to `MAX_UNFINISHED` of them."""
    filters = request.filters
    statuses = [
        s for s in Status if not s.final and (not filters.statuses or s in filters.statuses)
    ]
    if filters.need_ended or not statuses:
        return _Unfinished({}, None)
    rows = job_lists.list_unfinished(
        connection,
        jobs.IndexedFilters(
            request.owner,
            documents.moment(within.first),
            documents.moment(within.end) + MICROSECOND,
        ),
        statuses,
        newest_first=within.newest_first,
        limit=MAX_UNFINISHED,
    )
    places = [(documents.first_id(row.created_at) + documents.tie(row.id), row) for row in rows]
    matching = {
        place: row.id
        for place, row in places
        if place in within
        and filters.key in (None, row.key_id)
        and filters.batch in (None, row.batch_id)
        and filters.metadata.items() <= row.pairs.items()
    }
    return _Unfinished(matching, places[-1][0] if len(rows) == MAX_UNFINISHED else None)
