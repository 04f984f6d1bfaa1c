"""Retrying failed jobs: continuing them from their first unfinished stage."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from jobs.database import Database
from jobs.errors import JobNotFoundError, NotRetriableError
from jobs.models import Job, Status
from jobs.statements import documents, jobs, requests, retries, rollups
from jobs.statements.requests import Keyed
from jobs.statements.rollups import Change
from jobs.transient import retry_on_conflict
from jobs.use_cases.queries import get_job


@retry_on_conflict
def retry(
    database: Database, owner: str | None, job_id: str, keyed: Keyed | None = None
) -> tuple[Job, bool]:
    """Continue a failed job.

    It keeps its id, its seed, its model and its attempts, and its finished stages are not run again. Its time
    limit begins again, and lost workers count from now on. If it has an entry in the log, it gets another one
    when it ends again.

    Args:
        database: of the job.
        owner: of the job; None for any.
        job_id: of the job.
        keyed: the request that asks for it, if it has an idempotency key.

    Returns:
        the job, and whether it goes on because of this: not if the same request was done before.

    Raises:
        JobNotFoundError: the owner has no such job.
        NotRetriableError: it has not failed, or something else keeps it from going on.
        IdempotencyError: the key was used for a different request.
    """
    jobs.check_id(job_id)
    with database.write() as connection:
        is_new = requests.begin(connection, keyed) is None
        if is_new:
            _let_go_on(connection, owner, job_id)
            requests.end(connection, keyed)
    return get_job(database, owner, job_id), is_new


def _let_go_on(connection: sa.Connection, owner: str | None, job_id: str) -> None:
    job = retries.lock(connection, owner, job_id)
    if job is None:
        raise JobNotFoundError(job_id)
    if reason := _obstacle(job):
        raise NotRetriableError(job_id, reason)
    end = {
        "at": job.now.isoformat(),
        "finished_at": job.finished_at.isoformat(),
        "code": job.error_code,
        "entry": job.log_index,
    }
    retries.let_go_on(connection, job, end)
    # A list of ended jobs should not have it any more.
    documents.reindex(connection, job_id, forget=True)
    change = Change(job.created_at, job.owner, job.model, before=job.counted, after=None)
    rollups.apply(connection, [change])


def _obstacle(job: sa.Row[*tuple[Any, ...]]) -> str | None:
    """Return why a job cannot be retried."""
    if job.status is not Status.FAILED:
        return f"it is {job.status}, and only a failed job can be retried"
    if job.worker_id is not None:
        return "its worker has not given it back yet; retry in a few seconds"
    if job.erased_at is not None:
        return "texts of it were erased"
    if job.origin_proof is not None:
        return "it was imported, and its proof is of its end"
    return None
