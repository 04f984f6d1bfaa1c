"""Deleting jobs on request: one, or all of an owner or with metadata."""

from __future__ import annotations

from jobs.database import Database
from jobs.errors import JobNotFoundError
from jobs.statements import deletions, jobs, requests
from jobs.statements.requests import Keyed
from jobs.transient import retry_on_conflict
from jobs.use_cases import matching
from jobs.use_cases.matching import Step

#: Jobs that one step deletes: nobody else can write to SQLite meanwhile.
MAX_DELETED = 100


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
        if not deletions.delete(connection, owner, job_id):
            raise JobNotFoundError(job_id)


@retry_on_conflict
def delete_matching(
    database: Database,
    owner: str | None,
    metadata: dict[str, str],
    *,
    after: str | None,
    dry_run: bool = False,
    keyed: Keyed | None = None,
) -> Step:
    """Delete the next jobs of an owner that have some metadata, up to `MAX_DELETED`, whatever their status.

    Args:
        database: of the jobs.
        owner: of the jobs; None for all.
        metadata: pairs that the jobs have, besides others.
        after: where the step before ended; None for the first one.
        dry_run: whether to delete nothing.
        keyed: the request, if it has an idempotency key.

    Returns:
        the jobs that this step, or the same request before, found, and deleted unless it was a dry run.

    Raises:
        StepCursorError: ``after`` is not what a step returned.
        IdempotencyError: the key was used for a different request.
    """
    limit = matching.MAX_READ if dry_run else MAX_DELETED
    step = matching.find(database, owner, metadata, after, limit)
    if dry_run or not (step.ids or keyed):
        return step
    with database.write() as connection:
        before = requests.begin(connection, keyed)
        if before is not None:
            return Step(before["ids"], before["after"])
        deletions.delete_all(connection, step.ids)
        requests.end(connection, keyed, **step._asdict())
    return step
