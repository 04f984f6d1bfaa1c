"""Lists of jobs with filters and full-text search.

Jobs are read from their own table where its indexes are enough: by owner, status and time. All other filters
and the full text need the search index, which has ended jobs only (`jobs.use_cases.searching_by_age` and
`searching_by_rank`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

import sqlalchemy as sa

from jobs.database import Database
from jobs.enums import Order
from jobs.errors import NEXT_OR_ID, CursorError, JobNotFoundError
from jobs.models import Attempt, Job, SearchDocument
from jobs.search.filters import Filters
from jobs.statements import found_documents, job_lists, jobs
from jobs.statements.search import MAX_EFFORT
from jobs.use_cases import indexing
from jobs.use_cases.owners import narrow
from jobs.use_cases.search_request import FoundPage, SearchRequest
from jobs.use_cases.searching_by_age import search_by_age
from jobs.use_cases.searching_by_rank import search_by_rank

log = logging.getLogger(__name__)

#: The maximum number of jobs that a search indexes before it begins, at about a millisecond each.
MAX_CAUGHT_UP = 4


class Listed(NamedTuple):
    """A job in a list."""

    job: Job
    #: None until it is indexed.
    document: SearchDocument | None
    #: The attempts with outputs, the newest first, if there was a full-text query.
    outputs: Sequence[Attempt] = ()


class Page(NamedTuple):
    """A page of a list."""

    jobs: list[Listed]
    #: Where the next page begins; None if this is the last one.
    next: str | None


def search(
    database: Database,
    owner: str | None,
    filters: Filters,
    *,
    of: str | None = None,
    limit: int,
    after: str | None = None,
    order: Order = Order.NEWEST,
    effort: int = MAX_EFFORT,
) -> Page:
    """Return a page of jobs.

    A search that has compared ``effort`` documents in vain returns what it has found so far, which may be
    nothing, and the next page goes on from there.

    Args:
        database: of the jobs.
        owner: of the jobs; None for all.
        filters: that the jobs meet.
        of: only jobs of this owner; None for all that ``owner`` has.
        limit: the maximum number of jobs.
        after: `Page.next` of the page before, or unless ranked the id of its last job.
        order: of the jobs.
        effort: of a search (`jobs.statements.search.find`).

    Raises:
        CursorError: ``after`` is not what a page of such a list has.
    """
    any_meant, whose = narrow(owner, of)
    if not any_meant or filters.contradict:
        return Page([], None)
    request = SearchRequest(whose, filters, limit, after, order, effort)
    if order.by_age and not filters.need_index:
        return _list(database, request)
    _catch_up(database)
    found = (search_by_age if order.by_age else search_by_rank)(database, request)
    return Page(_load(database, request, found), found.next)


def _list(database: Database, request: SearchRequest) -> Page:
    """List jobs by the indexes of their own table."""
    with database.read_session() as session:
        page, has_more = job_lists.list_page(
            session,
            jobs.IndexedFilters.of(request.filters, request.owner),
            request.filters.statuses,
            limit=request.limit,
            after=_place_in_table(session.connection(), request),
            newest_first=request.order is not Order.OLDEST,
        )
        documents = found_documents.load_documents(session, [job.id for job in page])
    listed = [Listed(job, documents.get(job.id)) for job in page]
    return Page(listed, page[-1].id if has_more else None)


def _place_in_table(connection: sa.Connection, request: SearchRequest) -> job_lists.Place | None:
    """Return the place of the job after which a page begins; None for the first page."""
    if request.after is None:
        return None
    try:
        return job_lists.place_of(connection, request.owner, request.after)
    except JobNotFoundError:
        raise CursorError(request.after, NEXT_OR_ID) from None


def _catch_up(database: Database) -> None:
    """Index the jobs that have just ended, if they are few, so that a search finds them before the duty's next turn."""
    try:
        if indexing.any_pending(database):
            prepared = indexing.prepare(database, limit=MAX_CAUGHT_UP + 1)
            if len(prepared) <= MAX_CAUGHT_UP:
                indexing.put(database, prepared)
    except sa.exc.DBAPIError as error:
        # The database is read-only or busy. The search then lacks the jobs that have just ended.
        log.debug("jobs that have just ended are not indexed before a search: %s", error)


def _load(database: Database, request: SearchRequest, found: FoundPage) -> list[Listed]:
    with database.read_session() as session:
        rows: dict[int, tuple[Job, SearchDocument | None]] = {
            **found_documents.load(session, found.ids)
        }
        waiting = jobs.load(session, found.unfinished.values())
        rows |= {
            i: (waiting[name], None) for i, name in found.unfinished.items() if name in waiting
        }
        # Terms are short hashes, which may collide. That must not show a job of another owner.
        loaded = [
            rows[i] for i in found.ids if i in rows and request.owner in (None, rows[i][0].owner)
        ]
        outputs = {}
        if request.filters.query is not None:
            outputs = found_documents.load_outputs(session, [job.id for job, _ in loaded])
    return [Listed(job, document, outputs.get(job.id, ())) for job, document in loaded]
