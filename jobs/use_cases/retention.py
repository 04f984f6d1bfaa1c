"""Deleting what is old, a little at a time, so that others can write in between."""

from __future__ import annotations

import datetime as dt

from jobs.database import Database
from jobs.statements import deletions, workers
from jobs.timing import SECONDS_PER_DAY
from jobs.transient import retry_on_conflict


@retry_on_conflict
def delete_jobs(database: Database, days: int, *, limit: int = 100) -> int:
    """Delete jobs that ended more than ``days`` days ago, the oldest first, with their attempts.

    Args:
        database: of the jobs.
        days: how long jobs are kept.
        limit: the maximum number of jobs: nobody else can write to SQLite meanwhile.

    Returns:
        how many were deleted.
    """
    with database.write() as connection:
        return deletions.delete_ended(connection, days * SECONDS_PER_DAY, limit=limit)


def delete_workers(
    database: Database, after: dt.datetime | None = None, *, limit: int = 100
) -> dt.datetime | None:
    """Delete workers that are gone and that no stored job refers to.

    Args:
        database: of the workers.
        after: what the call before returned; None to begin with the oldest worker.
        limit: the maximum number of workers to look at.

    Returns:
        where the next call continues; None at the end.
    """
    with database.read() as connection:
        ids, next_after = workers.find_unused(connection, after, limit)
    if ids:
        with database.write() as connection:
            workers.delete_unused(connection, ids)
    return next_after
