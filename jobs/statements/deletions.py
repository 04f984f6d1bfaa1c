"""Statements that delete jobs with all that belongs to them. The owner None stands for all owners."""

from __future__ import annotations

from collections.abc import Collection

import sqlalchemy as sa

from jobs.database_clock import utcnow_once
from jobs.models import Job
from jobs.statements import deliveries, log, rollups
from jobs.statements.jobs import select_unlocked
from jobs.statements.owners import is_owned
from jobs.statements.rollups import Change


def delete(connection: sa.Connection, owner: str | None, job_id: str) -> bool:
    """Delete an owner's job with its attempts and webhooks; return whether there was one."""
    return bool(_delete(connection, sa.and_(Job.id == job_id, is_owned(Job.owner, owner))))


def delete_all(connection: sa.Connection, job_ids: Collection[str]) -> int:
    """Delete jobs by their ids with their attempts and webhooks; return how many there were."""
    return _delete(connection, Job.id.in_(list(job_ids)))


def _delete(connection: sa.Connection, condition: sa.ColumnElement[bool]) -> int:
    """Delete jobs with their attempts and webhooks, take them off the statistics, and note it for the log.

    Returns:
        how many there were.
    """
    # All is of the deleted row: a transaction that seals or counts the job may have come first.
    columns = (
        Job.id,
        Job.log_index,
        Job.retries,
        # Of an imported job: the entries that its retries name are of another log. Not IS NOT NULL: in RETURNING, SQLite
        # 3.40 takes it for true.
        sa.func.length(Job.origin_proof).label("proof_length"),
        Job.created_at,
        Job.owner,
        Job.model,
        Job.counted,
    )
    statement = sa.delete(Job).where(condition).returning(*columns)
    deleted = connection.execute(statement).all()
    if deleted:
        deliveries.delete_of_objects(connection, [row.id for row in deleted])
        entries = (
            (row.id, index)
            for row in deleted
            for index in (row.log_index, *(r["entry"] for r in row.retries if not row.proof_length))
        )
        log.note_deletions(connection, [entry for entry in entries if entry[1] is not None])
        rollups.apply(
            connection,
            [
                Change(row.created_at, row.owner, row.model, before=row.counted, after=None)
                for row in deleted
            ],
        )
    return len(deleted)


def delete_ended(connection: sa.Connection, seconds: float, *, limit: int) -> int:
    """Delete up to ``limit`` jobs that ended more than ``seconds`` ago, the oldest first, with their webhooks.

    A job whose attempt is still running stays for now.

    Returns:
        how many were deleted.
    """
    condition = sa.and_(Job.finished_at < utcnow_once(-seconds), Job.worker_id.is_(None))
    oldest = select_unlocked(condition).order_by(Job.finished_at).limit(limit)
    return _delete(connection, Job.id.in_(oldest))
