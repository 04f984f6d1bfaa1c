"""Deleting a job on request."""

from __future__ import annotations

from jobs.database import Database
from jobs.errors import JobNotFoundError
from jobs.statements import jobs
from jobs.transient import retry_on_conflict


@retry_on_conflict
def delete(database: Database, owner: str | None, job_id: str) -> None:
    """Delete a job with all its attempts, whatever its status.

    A worker that runs one of its stages has lost the lease with the row: it stops within a second, and
    records nothing.

    Raises:
        JobNotFoundError: the owner has no such job.
    """
    jobs.check_id(job_id)
    with database.write() as connection:
        if not jobs.delete(connection, owner, job_id):
            raise JobNotFoundError(job_id)
