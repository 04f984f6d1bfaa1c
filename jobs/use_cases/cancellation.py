"""Cancelling jobs."""

from __future__ import annotations

from jobs.database import Database
from jobs.models import Job
from jobs.statements import jobs, requests
from jobs.statements.requests import Keyed
from jobs.transient import retry_on_conflict


@retry_on_conflict
def cancel(database: Database, owner: str | None, job_id: str, keyed: Keyed | None = None) -> Job:
    """Cancel a job, unless it has ended; return it.

    The job has ended at once. The worker that runs its stage stops within a second; its attempt is running
    until the worker hands in the partial text or its lease expires.

    Args:
        database: of the job.
        owner: of the job; None for any.
        job_id: of the job.
        keyed: the request that asks for it, if it has an idempotency key.

    Raises:
        JobNotFoundError: the owner has no such job.
        IdempotencyError: the key was used for a different request.
    """
    jobs.check_id(job_id)
    with database.write_session() as session:
        connection = session.connection()
        if requests.begin(connection, keyed) is None:
            jobs.cancel(connection, owner, job_id)
            requests.end(connection, keyed)
        return jobs.get(session, owner, job_id)
