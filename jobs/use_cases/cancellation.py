"""Cancelling jobs."""

from __future__ import annotations

from jobs.database import Database
from jobs.models import Job
from jobs.statements import jobs
from jobs.transient import retry_on_conflict
from jobs.use_cases.queries import get_job


@retry_on_conflict
def cancel(database: Database, owner: str | None, job_id: str) -> Job:
    """Cancel a job of an owner (None: of any owner), unless it has ended; return it.

    The job has ended at once. The worker that runs its stage stops within a second; its attempt is running
    until the worker hands in the partial text or its lease expires.

    Raises:
        JobNotFoundError: the owner has no such job.
    """
    jobs.check_id(job_id)
    with database.write() as connection:
        jobs.cancel(connection, owner, job_id)
    return get_job(database, owner, job_id)
