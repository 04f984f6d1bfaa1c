"""Lists of jobs with filters and full-text search.

Jobs are read from their own table where its indexes are enough: by owner, status and time. All other filters
and the full text are those of the search index, which has jobs that have ended. Those that have not are few, and are
looked through for metadata, the only thing that they could be found by.
"""

from __future__ import annotations

import datetime as dt
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

import sqlalchemy as sa

from jobs.database import Database
from jobs.enums import Order
from jobs.errors import CursorError, JobNotFoundError
from jobs.models import Attempt, Job, SearchDocument, Status
from jobs.search import facets
from jobs.search.query import All, Any, Node, Term
from jobs.search.ranking import score
from jobs.statements import documents, jobs, search
from jobs.statements.documents import LAST_ID
from jobs.statements.jobs import ANY
from jobs.statements.search import MAX_EFFORT, Wanted
from jobs.use_cases import indexing

log = logging.getLogger(__name__)

#: The number of matches that are ranked together, the newest first.
RANKED = 200
#: Jobs that have not ended that a page may look through: that takes about ten milliseconds.
MAX_UNFINISHED = 2000
#: Jobs that a search may index before it begins: each takes about a millisecond.
MAX_CAUGHT_UP = 4


@dataclass(frozen=True)
class Filters:
    """What a list is filtered by. Each one that is set must be met."""

    statuses: tuple[Status, ...] = ()
    #: Created from ``since`` on, and before ``until``.
    since: dt.datetime | None = None
    until: dt.datetime | None = None
    query: Node | None = None
    #: Name or digest of an adapter that a worker of the job served.
    adapter: str | None = None
    #: As in `Job.model`.
    model: str | None = None
    #: Id or host of a worker that ran a stage.
    worker: str | None = None
    metadata: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    #: Of one stage.
    min_attempts: int | None = None
    #: Shares of words, from 0 to 1.
    min_changed: float | None = None
    max_changed: float | None = None
    #: Seconds.
    min_duration: float | None = None
    max_duration: float | None = None
    #: The last rating of the regeneration; None for jobs without one, `ANY` for all.
    rating: int | None = ANY

    @property
    def need_index(self) -> bool:
        """Whether the table of jobs has no index for them."""
        return bool(self.metadata) or self.need_ended

    @property
    def need_ended(self) -> bool:
        """Whether only jobs that have ended can meet them."""
        rest = (
            self.query,
            self.adapter,
            self.model,
            self.worker,
            self.min_attempts,
            self.min_changed,
            self.max_changed,
            self.min_duration,
            self.max_duration,
        )
        return any(value is not None for value in rest)


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


def list_jobs(
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
    if of is not None and owner is not None and of != owner:
        return Page([], None)
    whose = owner if of is None else of
    if not filters.need_index:
        return _list(database, whose, filters, limit, after, order)
    _catch_up(database)
    wanted = _wanted(whose, filters)
    bounds = _Bounds.of(filters)
    unfinished: dict[int, str] = {}
    if order is Order.RELEVANCE:
        ids, following = _ranked(database, wanted, filters, bounds, limit, after, effort)
    else:
        ids, following, unfinished = _searched(
            database, whose, wanted, filters, bounds, limit, after, order, effort
        )
    with database.read_session() as session:
        found: dict[int, tuple[Job, SearchDocument | None]] = {**search.load(session, ids)}
        waiting = jobs.load(session, unfinished.values())
        found |= {i: (waiting[name], None) for i, name in unfinished.items() if name in waiting}
        loaded = [found[i] for i in ids if i in found]
        # Terms are hashes; an owner's jobs are an owner's.
        loaded = [(job, document) for job, document in loaded if whose in (None, job.owner)]
        outputs = {}
        if filters.query is not None:
            outputs = search.load_outputs(session, [job.id for job, _ in loaded])
    return Page([Listed(job, doc, outputs.get(job.id, ())) for job, doc in loaded], following)


def _list(
    database: Database,
    owner: str | None,
    filters: Filters,
    limit: int,
    after: str | None,
    order: Order,
) -> Page:
    """List jobs by the indexes of their own table."""
    with database.read_session() as session:
        try:
            page = jobs.list_page(
                session,
                owner,
                limit=limit + 1,
                after=after,
                newest_first=order is not Order.OLDEST,
                statuses=filters.statuses,
                since=filters.since,
                until=filters.until,
                rating=filters.rating,
                with_attempts=False,
            )
        except JobNotFoundError:
            raise CursorError(str(after)) from None
        shown = page[:limit]
        documents = search.load_documents(session, [job.id for job in shown])
    listed = [Listed(job, documents.get(job.id)) for job in shown]
    return Page(listed, shown[-1].id if len(page) > limit else None)


def _catch_up(database: Database) -> None:
    """Index the jobs that have just ended, if they are few, so that a search finds them before the duty's next turn."""
    try:
        if indexing.any_pending(database):
            prepared = indexing.prepare(database, limit=MAX_CAUGHT_UP + 1)
            if len(prepared) <= MAX_CAUGHT_UP:
                indexing.put(database, prepared)
    except sa.exc.DBAPIError as error:
        # Who can only read, or not write now, searches what is indexed.
        log.debug("jobs that have just ended are not indexed before a search: %s", error)


class _Bounds(NamedTuple):
    """The lowest id of documents, and the one after the highest."""

    first: int
    end: int

    @classmethod
    def of(cls, filters: Filters) -> _Bounds:
        first, end = filters.since, filters.until
        return cls(
            0 if first is None else documents.first_id(first),
            LAST_ID if end is None else documents.first_id(end),
        )


def _searched(
    database: Database,
    owner: str | None,
    wanted: Wanted,
    filters: Filters,
    bounds: _Bounds,
    limit: int,
    after: str | None,
    order: Order,
    effort: int,
) -> tuple[list[int], str | None, dict[int, str]]:
    """Search by age.

    Returns:
        documents, the next page's cursor, and which of the documents do not exist: those that jobs that have not
        ended will have, with the jobs' ids.
    """
    newest_first = order is Order.NEWEST
    first, end = bounds
    with database.read() as connection:
        if after is not None:
            match = re.fullmatch(r"pos_(\d{1,19})", after)
            position = int(match[1]) if match else search.id_of(connection, owner, _job_id(after))
            if position is None or position > LAST_ID:
                raise CursorError(after)
            if newest_first:
                end = min(end, position)
            else:
                first = max(first, position + 1)
        unfinished = _unfinished(connection, owner, filters, _Bounds(first, end), newest_first)
        if unfinished.last is not None:
            # There may be more beyond it.
            first, end = (unfinished.last, end) if newest_first else (first, unfinished.last + 1)
        found = search.find(
            connection,
            wanted,
            first=first,
            end=end,
            newest_first=newest_first,
            limit=limit + 1,
            effort=effort,
        )
    stopped_at = found.stopped_at
    if stopped_at is not None:
        first, end = (stopped_at, end) if newest_first else (first, stopped_at)
    elif unfinished.last is not None:
        stopped_at = first if newest_first else end
    some = {i: job_id for i, job_id in unfinished.matching.items() if first <= i < end}
    ids = sorted({*found.ids, *some}, reverse=newest_first)
    if len(ids) > limit:
        return ids[:limit], f"pos_{ids[limit - 1]}", some
    if stopped_at is None:
        return ids, None, some
    return ids, f"pos_{stopped_at if newest_first else stopped_at - 1}", some


class _Unfinished(NamedTuple):
    """Jobs that have not ended."""

    #: Those that match, by the ids that their documents will have.
    matching: dict[int, str]
    #: The id of the last one that was looked at, if there may be more.
    last: int | None


def _unfinished(
    connection: sa.Connection,
    owner: str | None,
    filters: Filters,
    bounds: _Bounds,
    newest_first: bool,
) -> _Unfinished:
    """Look through jobs that have not ended, up to `MAX_UNFINISHED` of them."""
    statuses = [
        s for s in Status if not s.final and (not filters.statuses or s in filters.statuses)
    ]
    if filters.need_ended or filters.rating not in (ANY, None) or not statuses:
        return _Unfinished({}, None)
    first, end = bounds
    rows = jobs.list_unfinished(
        connection,
        jobs.Filters(
            owner, documents.moment(first), documents.moment(end) + dt.timedelta(microseconds=1)
        ),
        statuses,
        newest_first=newest_first,
        limit=MAX_UNFINISHED,
    )
    places = [(documents.first_id(row.created_at) + documents.tie(row.id), row) for row in rows]
    matching = {
        place: row.id
        for place, row in places
        if first <= place < end and filters.metadata.items() <= row.pairs.items()
    }
    return _Unfinished(matching, places[-1][0] if len(rows) == MAX_UNFINISHED else None)


def _job_id(after: str) -> str:
    try:
        jobs.check_id(after)
    except JobNotFoundError:
        raise CursorError(after) from None
    return after


def _ranked(
    database: Database,
    wanted: Wanted,
    filters: Filters,
    bounds: _Bounds,
    limit: int,
    after: str | None,
    effort: int,
) -> tuple[list[int], str | None]:
    """Search by rank; return documents and the next page's cursor.

    The newest `RANKED` matches are ranked, and come before all others; then the next ones. A cursor has the
    bounds of what was ranked, and rank and id of the last job: jobs that end meanwhile move no others.
    """
    assert filters.query is not None  # noqa: S101 (the web orders by rank only with a query)
    first, end = bounds
    last: tuple[int, int] | None = None
    ranked = RANKED
    if after is not None:
        match = re.fullmatch(r"rank_(\d{1,19})_(\d{1,19})(?:_(\d{1,12})_(\d{1,19}))?", after)
        if match is None or max(int(match[1]), int(match[2])) > LAST_ID:
            raise CursorError(after)
        end = min(end, int(match[2]))
        if match[3] is not None:
            first = max(first, int(match[1]))
            last = (-int(match[3]), -int(match[4]))
            # All that was ranked is ranked again, whatever ended since.
            ranked, effort = 2 * RANKED, LAST_ID
    with database.read() as connection:
        found = search.find(connection, wanted, first=first, end=end, limit=ranked, effort=effort)
        words = search.words_of(connection, found.ids)
    keys = sorted((-score(filters.query, text), -i) for i, text in words.items())
    low = first
    if last is None and len(found.ids) == RANKED:
        low = found.ids[-1]
    elif found.stopped_at is not None:
        low = found.stopped_at
    if last is not None:
        keys = [key for key in keys if key > last]
    shown = keys[:limit]
    ids = [-i for _, i in shown]
    if len(keys) > limit:
        rank, document = shown[-1]
        if found.ids:
            end = found.ids[0] + 1
        return ids, f"rank_{low}_{end}_{-rank}_{-document}"
    if low > bounds.first:
        return ids, f"rank_{bounds.first}_{low}"
    return ids, None


def _wanted(owner: str | None, filters: Filters) -> Wanted:
    """Return filters as a query of the index."""
    parts: list[Node] = []
    conditions: list[sa.ColumnElement[bool]] = []
    if filters.query is not None:
        parts += filters.query.of if isinstance(filters.query, All) else (filters.query,)
    if owner is not None:
        parts.append(Term(facets.term("owner", owner)))
    if filters.statuses:
        terms = (Term(facets.term("status", status.value)) for status in filters.statuses)
        parts.append(Any(tuple(terms)))
    for name in ("adapter", "model", "worker"):
        value = getattr(filters, name)
        if value is not None:
            parts.append(Term(facets.term(name, value)))
    if filters.rating != ANY:
        parts.append(Term(facets.rating_term(filters.rating)))
    parts += [Term(facets.term("metadata", *item)) for item in filters.metadata.items()]
    if filters.min_attempts is not None and filters.min_attempts > 1:
        parts.append(facets.at_least(filters.min_attempts))
        if filters.min_attempts > facets.MAX_ATTEMPTS:
            conditions.append(sa.column("attempts") >= filters.min_attempts)
    changed, duration = (sa.column(name, sa.Float) for name in ("changed", "duration"))
    for column, bucket, least, most in (
        (changed, facets.share_between, filters.min_changed, filters.max_changed),
        (duration, facets.duration_between, filters.min_duration, filters.max_duration),
    ):
        if least is None and most is None:
            continue
        parts.append(bucket(least, most))
        if least is not None:
            conditions.append(column >= least)
        if most is not None:
            conditions.append(column <= most)
    return Wanted(All(tuple(parts)), conditions)
