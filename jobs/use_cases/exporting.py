"""Exporting: jobs in the order of their creation, a page at a time.

Each page is a short transaction of its own, so a slow reader holds no connection and no snapshot.
A page begins after the place of the page before and not after its last job, which may be deleted by then.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from jobs.database import Database
from jobs.enums import Order
from jobs.errors import JobNotFoundError
from jobs.models import Job
from jobs.search.filters import Filters
from jobs.statements import job_lists, jobs, whole_jobs
from jobs.statements.job_lists import Place
from jobs.times import MICROSECOND
from jobs.tlog.proof import Proof
from jobs.use_cases import proving, searching
from jobs.use_cases.owners import narrow

__all__ = ["Exported", "pages", "selected"]

#: Jobs of a page. A job may have 11 stages of a whole context each.
PAGE = 50


class Exported(NamedTuple):
    """A job with all that its history has."""

    job: Job
    #: Of its entry in the log and those of its reviews and erasures, by their places; empty if they were not asked for.
    proofs: Mapping[int, Proof]


def pages(
    database: Database,
    owner: str | None,
    filters: Filters,
    *,
    of: str | None = None,
    with_proofs: bool = False,
    size: int = PAGE,
) -> Generator[list[Exported]]:
    """Yield jobs in the order of their creation, up to the one that is the newest now.

    Args:
        database: of the jobs.
        owner: whose jobs may be read; None for all.
        filters: which of them. Those that need the search index find jobs that have ended.
        of: only jobs of this owner; None for all that ``owner`` has.
        with_proofs: whether to add the proofs of their entries, and of those of their reviews and erasures.
        size: the maximum number of jobs of a page.
    """
    any_meant, whose = narrow(owner, of)
    if not any_meant:
        return
    plain = jobs.IndexedFilters.of(filters, whose)
    with database.read() as connection:
        last = job_lists.find_last(connection, plain)
    if last is None:
        return
    indexed = filters.need_index
    # What the search index has does not end by itself: jobs that are created meanwhile are left out.
    within = replace(filters, until=last.created_at + MICROSECOND)
    after: Place | None = None
    cursor: str | None = None
    while True:
        if indexed:
            listed = searching.search(
                database, whose, within, limit=size, after=cursor, order=Order.OLDEST
            )
            ids, cursor = [each.job.id for each in listed.jobs], listed.next
            is_last = cursor is None
        else:
            with database.read() as connection:
                places = job_lists.list_between(
                    connection, plain, filters.statuses, after, last, size
                )
            ids, after = [place.job_id for place in places], places[-1] if places else after
            is_last = len(places) < size
        yield from _loaded(database, ids, with_proofs=with_proofs)
        if is_last:
            return


def _loaded(
    database: Database, job_ids: Sequence[str], *, with_proofs: bool
) -> Iterator[list[Exported]]:
    """Yield jobs in the order of their ids, as many at a time as may be in memory. Those that are gone are left out."""
    with database.read() as connection:
        parts = whole_jobs.parts(connection, job_ids)
    for part in parts:
        with database.read_session() as session:
            loaded = whole_jobs.load(session, part)
            there = [loaded[job_id] for job_id in part if job_id in loaded]
            proofs = proving.prove_all(session.connection(), there) if with_proofs else {}
        if there:
            yield [Exported(job, proofs) for job in there]


def selected(
    database: Database,
    owner: str | None,
    job_ids: Sequence[str],
    *,
    with_proofs: bool = False,
    size: int = PAGE,
) -> Iterator[list[Exported]]:
    """Return jobs in the order of their ids as they are given, in pages as `pages` has them.

    Args:
        database: of the jobs.
        owner: whose jobs may be read; None for all.
        job_ids: of the jobs.
        with_proofs: as in `pages`.
        size: the maximum number of jobs of a page.

    Raises:
        JobNotFoundError: the owner lacks one of the jobs now. One that is deleted later is left out.
    """
    for job_id in job_ids:
        jobs.check_id(job_id)
    with database.read() as connection:
        found = jobs.versions(connection, list(job_ids))
    for job_id in job_ids:
        if job_id not in found or owner not in (None, found[job_id].owner):
            raise JobNotFoundError(job_id)

    def made() -> Iterator[list[Exported]]:
        for first in range(0, len(job_ids), size):
            yield from _loaded(database, job_ids[first : first + size], with_proofs=with_proofs)

    return made()
