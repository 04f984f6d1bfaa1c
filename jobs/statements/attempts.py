"""Statements on attempts. They are added and ended, and never changed once they have ended."""

from __future__ import annotations

import datetime as dt

import sqlalchemy as sa
from sqlalchemy.orm import aliased

from jobs.database_clock import utcnow
from jobs.models import Attempt, AttemptStatus, Job, Status

#: The job under another name: within a statement on jobs it would be that statement's.
_JOB = aliased(Job)
_RETRIED_AT = sa.select(_JOB.retried_at).where(_JOB.id == sa.bindparam("job")).scalar_subquery()
#: Counts the attempts at a stage that were lost with their workers since the job was last retried.
#: Parameters: ``job``, ``stage``.
COUNT_LOST = sa.select(sa.func.count()).where(
    Attempt.job_id == sa.bindparam("job"),
    Attempt.stage_index == sa.bindparam("stage"),
    Attempt.status == AttemptStatus.LOST,
    Attempt.started_at >= sa.func.coalesce(_RETRIED_AT, Attempt.started_at),
)

_OF_JOB = (
    sa.select(Attempt.run, Attempt.stage_index, Attempt.status, Attempt.output)
    .where(Attempt.job_id == sa.bindparam("job"))
    .order_by(Attempt.stage_index)
)

_ADD = sa.insert(Attempt).returning(Attempt.id)

#: When ``job`` ended; null if it has not.
_JOB_FINISHED_AT = sa.select(Job.finished_at).where(Job.id == sa.bindparam("job")).scalar_subquery()
_RUNNING = sa.update(Attempt).where(
    Attempt.job_id == sa.bindparam("job"),
    Attempt.lease_token == sa.bindparam("token"),
    Attempt.status == AttemptStatus.RUNNING,
)
_END = _RUNNING.values(finished_at=sa.func.coalesce(_JOB_FINISHED_AT, utcnow()))
_END_AFTER_JOB = _RUNNING.values(finished_at=utcnow())


def count_lost(connection: sa.Connection, job_id: str, stage_index: int) -> int:
    """Count the attempts at a stage that were lost with their workers, in all runs since the last retry."""
    return connection.scalar(COUNT_LOST, {"job": job_id, "stage": stage_index}) or 0


def of_job(
    connection: sa.Connection, job_id: str
) -> list[sa.Row[int, int, AttemptStatus, str | None]]:
    """Return run, stage index, status and output of a job's attempts, in the order of their stages."""
    return list(connection.execute(_OF_JOB, {"job": job_id}))


def add(connection: sa.Connection, **columns: object) -> int:
    """Add an attempt that begins; return its id."""
    return connection.execute(_ADD, columns).scalar_one()


def get_running(
    connection: sa.Connection, job_id: str, lease_token: int
) -> sa.Row[int, int, str, dt.datetime]:
    """Return id, number, prompt and start of the running attempt of a lease."""
    found = sa.select(Attempt.id, Attempt.number, Attempt.prompt, Attempt.started_at).where(
        Attempt.job_id == job_id,
        Attempt.lease_token == lease_token,
        Attempt.status == AttemptStatus.RUNNING,
    )
    return connection.execute(found).one()


def is_finished(connection: sa.Connection, job_id: str, lease_token: int, worker_id: str) -> bool:
    """Return whether the attempt of a worker's lease has ended with its stage's text."""
    found = sa.select(Attempt.status).where(
        Attempt.job_id == job_id,
        Attempt.lease_token == lease_token,
        Attempt.worker_id == worker_id,
    )
    return connection.scalar(found) is AttemptStatus.FINISHED


def end(
    connection: sa.Connection,
    job_id: str,
    lease_token: int,
    status: AttemptStatus,
    **columns: object,
) -> None:
    """End the running attempt of a lease: when its job ended, if that just ended with it, or now."""
    parameters = {"job": job_id, "token": lease_token, "status": status, **columns}
    connection.execute(_END, parameters)


def end_after_job(
    connection: sa.Connection,
    job_id: str,
    lease_token: int,
    job_status: Status,
    **columns: object,
) -> None:
    """End the running attempt of a lease whose job had ended before, with ``job_status``."""
    cancelled = job_status is Status.CANCELLED
    status = AttemptStatus.CANCELLED if cancelled else AttemptStatus.FAILED
    parameters = {"job": job_id, "token": lease_token, "status": status, **columns}
    connection.execute(_END_AFTER_JOB, parameters)
