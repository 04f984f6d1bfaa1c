"""Statements that let a failed job go on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from jobs.database_clock import utcnow
from jobs.models import Job, Status
from jobs.statements.owners import is_owned

_LOCKED = (
    Job.id,
    Job.erased_at,
    Job.origin_proof,
    Job.owner,
    Job.status,
    Job.started_at,
    Job.finished_at,
    Job.worker_id,
    Job.error_code,
    Job.log_index,
    Job.retries,
    Job.created_at,
    Job.model,
    Job.counted,
    utcnow().label("now"),
)


def lock(
    connection: sa.Connection, owner: str | None, job_id: str
) -> sa.Row[*tuple[Any, ...]] | None:
    """Lock a job until the transaction ends; return what a retry depends on, and the time (``now``).

    Args:
        connection: of the transaction.
        owner: of the job; None for any.
        job_id: of the job.

    Returns:
        None if the owner has no such job.
    """
    query = sa.select(*_LOCKED).where(Job.id == job_id, is_owned(Job.owner, owner))
    return connection.execute(query.with_for_update()).one_or_none()


def let_go_on(
    connection: sa.Connection, job: sa.Row[*tuple[Any, ...]], end: Mapping[str, Any]
) -> None:
    """Make the first unfinished stage of a failed job ready, as published now.

    Args:
        connection: in the transaction that locked the job.
        job: as `lock` returned it.
        end: how it had ended, for its retries.
    """
    connection.execute(
        sa.update(Job)
        .where(Job.id == job.id)
        .values(
            status=Status.IN_PROGRESS if job.started_at else Status.QUEUED,
            retries=[*job.retries, end],
            retried_at=job.now,
            finished_at=None,
            deadline_at=None,
            error_code=None,
            error_message=None,
            ready_at=job.now,
            published_at=job.now,
            log_index=None,
            log_salt=None,
            counted=None,
        )
    )
