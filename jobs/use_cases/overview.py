"""What the page of jobs shows beside the list itself: counts, what is new, and how the answers begin."""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection

from jobs.database import Database
from jobs.enums import ANY
from jobs.errors import CursorError, JobNotFoundError
from jobs.models import Status
from jobs.search.filters import Filters
from jobs.statements import job_lists, jobs, listing
from jobs.statements.listing import Opening

__all__ = [
    "MAX_COUNT",
    "MAX_NEW",
    "Opening",
    "can_count",
    "count_by_status",
    "count_newer",
    "openings",
]

#: Counting stops at these numbers.
MAX_COUNT, MAX_NEW = 1000, 100
#: Characters of an answer's beginning.
LENGTH = 160


def openings(database: Database, job_ids: Collection[str]) -> dict[str, Opening]:
    """Return how the last draft or regeneration of each job begins. Jobs without any text are left out."""
    with database.read() as connection:
        return listing.openings(connection, job_ids, LENGTH) if job_ids else {}


def can_count(filters: Filters) -> bool:
    """Return whether the jobs of each status that meet filters are consecutive entries of an index."""
    return not filters.need_index and filters.rating == ANY


def count_by_status(
    database: Database,
    owner: str | None,
    *,
    since: dt.datetime | None = None,
    until: dt.datetime | None = None,
) -> dict[Status, int]:
    """Count an owner's jobs of each status, up to `MAX_COUNT` of each.

    Args:
        database: of the jobs.
        owner: of the jobs; None for all.
        since, until: the jobs were created from ``since`` on, and before ``until``.
    """
    with database.read() as connection:
        return listing.count_by_status(
            connection, jobs.IndexedFilters(owner, since, until), tuple(Status), MAX_COUNT
        )


def count_newer(database: Database, owner: str | None, filters: Filters, job_id: str) -> int:
    """Count an owner's jobs that were created after one of them, up to `MAX_NEW`.

    Args:
        database: of the jobs.
        owner: of the jobs; None for all.
        filters: that the jobs meet; `can_count` says whether they are counted.
        job_id: of the job that they come after.

    Raises:
        CursorError: the owner has no such job.
    """
    assert can_count(filters)  # noqa: S101 (the web asks for no others)
    with database.read() as connection:
        try:
            place = job_lists.place_of(connection, owner, job_id)
        except JobNotFoundError:
            raise CursorError(job_id) from None
        return listing.count_newer(
            connection, jobs.IndexedFilters.of(filters, owner), filters.statuses, place, MAX_NEW
        )
