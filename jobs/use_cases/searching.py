"""Lists of jobs with filters and full-text search.

Jobs are read from their own table where its indexes are enough: by owner, status and time. All other filters
and the full text need the search index, which has ended jobs only. Open jobs are few, and metadata and the API key are
the only ones of these filters that they can meet, so they are compared one by one.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import sqlalchemy as sa

from jobs import adapter_names
from jobs.database import Database
from jobs.enums import ANY, Order
from jobs.errors import CursorError, JobNotFoundError
from jobs.models import Attempt, Job, SearchDocument, Status
from jobs.search import facets
from jobs.search.filters import Filters, Wanted
from jobs.search.query import Term
from jobs.search.ranking import score
from jobs.statements import documents, found_documents, job_lists, jobs, rollups, search
from jobs.statements.documents import LAST_ID
from jobs.statements.search import MAX_EFFORT
from jobs.times import MICROSECOND
from jobs.use_cases import indexing

log = logging.getLogger(__name__)

#: The number of matches that are ranked together, the newest first.
RANKED = 200
#: The maximum number of open jobs that a page compares, in about ten milliseconds.
MAX_UNFINISHED = 2000
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


@dataclass(frozen=True)
class _Request:
    """Which page of which list is asked for, as `list_jobs` has it."""

    #: Of the jobs; None for all.
    owner: str | None
    filters: Filters
    limit: int
    after: str | None
    order: Order
    effort: int


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
    if (of is not None and owner is not None and of != owner) or filters.contradict:
        return Page([], None)
    request = _Request(owner if of is None else of, filters, limit, after, order, effort)
    if order.by_age and not filters.need_index:
        return _list(database, request)
    _catch_up(database)
    found = (_search if order.by_age else _rank)(database, request)
    return Page(_load(database, request, found), found.next)


def _list(database: Database, request: _Request) -> Page:
    """List jobs by the indexes of their own table."""
    with database.read_session() as session:
        page, has_more = job_lists.list_page(
            session,
            jobs.Filters.of(request.filters, request.owner),
            request.filters.statuses,
            limit=request.limit,
            after=_place_in_table(session.connection(), request),
            newest_first=request.order is not Order.OLDEST,
        )
        documents = found_documents.load_documents(session, [job.id for job in page])
    listed = [Listed(job, documents.get(job.id)) for job in page]
    return Page(listed, page[-1].id if has_more else None)


def _place_in_table(connection: sa.Connection, request: _Request) -> job_lists.Place | None:
    """Return the place of the job after which a page begins; None for the first page."""
    if request.after is None:
        return None
    try:
        return job_lists.place_of(connection, request.owner, request.after)
    except JobNotFoundError:
        raise CursorError(request.after) from None


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


@dataclass(frozen=True)
class _Found:
    """A page that the search index has."""

    #: Of documents, in order.
    ids: list[int]
    next: str | None
    #: The open jobs of the page, by the ids that their documents will have.
    unfinished: Mapping[int, str] = field(default_factory=dict)


def _load(database: Database, request: _Request, found: _Found) -> list[Listed]:
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


@dataclass(frozen=True)
class _Range:
    """A range of documents, by their ids, and in which order it is read."""

    #: The lowest id, and the one after the highest.
    first: int
    end: int
    newest_first: bool

    @classmethod
    def of(cls, request: _Request) -> _Range:
        """Return all that a request is about, whatever the page."""
        since, until = request.filters.since, request.filters.until
        return cls(
            0 if since is None else documents.first_id(since),
            LAST_ID if until is None else documents.first_id(until),
            request.order is not Order.OLDEST,
        )

    def beyond(self, place: int) -> _Range:
        """Return what follows a document."""
        if self.newest_first:
            return _Range(self.first, min(self.end, place), True)
        return _Range(max(self.first, place + 1), self.end, False)

    def up_to(self, place: int) -> _Range:
        """Return what ends with a document of the range."""
        if self.newest_first:
            return _Range(place, self.end, True)
        return _Range(self.first, place + 1, False)

    def __contains__(self, place: int) -> bool:
        return self.first <= place < self.end


def _wanted(connection: sa.Connection, request: _Request) -> Wanted:
    """Return the filters of a request as a query of the search index."""
    adapter = request.filters.adapter
    named = () if adapter is None else adapter_names.names(rollups.models(connection), adapter)
    return request.filters.wanted(request.owner, sorted(named))


def _search(database: Database, request: _Request) -> _Found:
    """Search by age."""
    within = _Range.of(request)
    with database.read() as connection:
        if request.after is not None:
            within = within.beyond(_place(connection, request.owner, request.after))
        unfinished = _unfinished(connection, request, within)
        last = unfinished.last
        if last is not None:
            within = within.up_to(last)
        found = search.find(
            connection,
            _wanted(connection, request),
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
    return _Found(ids, None if last is None else f"pos_{last}", some)


def _place(connection: sa.Connection, owner: str | None, after: str) -> int:
    """Return the document after which a page begins."""
    match = re.fullmatch(r"pos_(\d{1,19})", after)
    if match:
        place: int | None = int(match[1])
    else:
        try:
            jobs.check_id(after)
        except JobNotFoundError:
            raise CursorError(after) from None
        place = found_documents.id_of(connection, owner, after)
    if place is None or place > LAST_ID:
        raise CursorError(after)
    return place


class _Unfinished(NamedTuple):
    """Jobs that have not ended."""

    #: Those that match, by the ids that their documents will have.
    matching: dict[int, str]
    #: The id of the last one that was looked at, if there may be more.
    last: int | None


def _unfinished(connection: sa.Connection, request: _Request, within: _Range) -> _Unfinished:
    """Look through jobs that have not ended, up to `MAX_UNFINISHED` of them."""
    filters = request.filters
    statuses = [
        s for s in Status if not s.final and (not filters.statuses or s in filters.statuses)
    ]
    if filters.need_ended or filters.rating not in (ANY, None) or not statuses:
        return _Unfinished({}, None)
    rows = job_lists.list_unfinished(
        connection,
        jobs.Filters(
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
        and filters.metadata.items() <= row.pairs.items()
    }
    return _Unfinished(matching, places[-1][0] if len(rows) == MAX_UNFINISHED else None)


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
            raise CursorError(cursor)
        last = None if match[4] is None else (-int(match[4]), -int(match[5]))
        return cls(int(match[1]), int(match[2]), int(match[3]), last)

    def __str__(self) -> str:
        cursor = f"rank_{self.group}_{self.first}_{self.end}"
        return cursor if self.last is None else f"{cursor}_{-self.last[0]}_{-self.last[1]}"


def _groups(request: _Request) -> Sequence[Term]:
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


def _ranks(connection: sa.Connection, request: _Request, ids: Sequence[int]) -> dict[int, int]:
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


def _rank(database: Database, request: _Request) -> _Found:
    """Search by rank, one group after another."""
    bounds, groups = _Range.of(request), _groups(request)
    cursor = _RankCursor(0, bounds.first, bounds.end)
    if request.after is not None:
        cursor = _RankCursor.parse(request.after)
        if cursor.group >= max(1, len(groups)):
            raise CursorError(request.after)
    ids: list[int] = []
    effort = request.effort
    with database.read() as connection:
        wanted = _wanted(connection, request)
        while True:
            some = replace(request, limit=request.limit - len(ids), effort=effort)
            group = wanted.narrowed(groups[cursor.group : cursor.group + 1])
            ranked = _rank_some(connection, some, group, cursor)
            ids += ranked.ids
            effort = ranked.effort
            full = len(ids) == request.limit or effort <= 0
            rest = groups[cursor.group + 1 :]
            if ranked.next is not None:
                cursor = ranked.next
            elif rest and not (full and _is_empty(connection, wanted.narrowed(rest), bounds)):
                cursor = _RankCursor(cursor.group + 1, bounds.first, bounds.end)
            else:
                return _Found(ids, None)
            if full:
                return _Found(ids, str(cursor))


def _is_empty(connection: sa.Connection, wanted: Wanted, within: _Range) -> bool:
    """Return whether no document of a range matches. It may be unknown, and is then False."""
    found = search.find(connection, wanted, first=within.first, end=within.end, limit=1)
    return not found.ids and found.stopped_at is None


def _rank_some(
    connection: sa.Connection, request: _Request, wanted: Wanted, cursor: _RankCursor
) -> _Ranked:
    """Rank matches of a group: the newest `RANKED` come before all others, then come the next ones."""
    bounds = _Range.of(request)
    first, end = max(bounds.first, cursor.first), min(bounds.end, cursor.end)
    ranked, effort = RANKED, request.effort
    if cursor.last is not None:
        # Rank the same jobs again, and also those that ended since.
        ranked, effort = 2 * RANKED, LAST_ID
    found = search.find(connection, wanted, first=first, end=end, limit=ranked, effort=effort)
    keys = sorted((-rank, -i) for i, rank in _ranks(connection, request, found.ids).items())
    low = first
    if cursor.last is not None:
        keys = [key for key in keys if key > cursor.last]
    else:
        request = replace(request, effort=found.effort)
        if len(found.ids) == RANKED:
            low = found.ids[-1]
        elif found.stopped_at is not None:
            low = found.stopped_at
    shown = keys[: request.limit]
    following = None
    if len(keys) > len(shown):
        following = _RankCursor(cursor.group, low, found.ids[0] + 1, shown[-1])
    elif low > bounds.first:
        following = _RankCursor(cursor.group, bounds.first, low)
    return _Ranked([-i for _, i in shown], following, request.effort)
