"""What every worker does for all jobs: it brings lost work back, and ends what must end."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from jobs import pipeline
from jobs.db import ago, utcnow
from jobs.models import AttemptStatus, Job, Status
from jobs.store import statements
from jobs.store.base import Base
from jobs.store.running import MAX_LOST
from jobs.store.statements import (
    IS_IN_PROGRESS,
    IS_LEASED,
    IS_QUEUED,
    end_attempt,
    end_stopped,
    free,
)

SWEEP_INTERVAL = 5.0
#: Seconds past its deadline after which a job is ended whoever holds its lease.
DEADLINE_GRACE = 30.0
LOST = "the worker that ran this attempt stopped answering"
PAST_DEADLINE = "the job ran past its deadline (HELIXQ_JOB_TIMEOUT)"


@dataclass(frozen=True)
class Swept:
    """What a sweep found."""

    #: Jobs taken back from workers that stopped answering.
    rescued: list[str]
    #: Jobs that ended because of it: three workers lost, or the deadline passed.
    failed: list[str]
    #: Jobs that had ended before, and whose attempts ended now with their workers.
    stopped: list[str]


class Sweeping(Base):
    """The work that nobody is at."""

    def busy(self) -> bool:
        """Whether any job has not ended, or any attempt: nothing else can need a sweep."""
        with self._read_rows() as connection:
            some = (sa.exists().where(which) for which in (IS_QUEUED, IS_IN_PROGRESS, IS_LEASED))
            return bool(connection.scalar(sa.select(sa.or_(*some))))

    def sweep(self) -> Swept:
        """Take back the stages of workers that stopped answering, and end what must end."""
        expired = sa.and_(IS_LEASED, Job.lease_expires_at < utcnow())
        late = sa.and_(
            IS_IN_PROGRESS,
            sa.or_(
                sa.and_(Job.worker_id.is_(None), Job.deadline_at < utcnow()),
                # Whoever holds the lease should have ended it long ago.
                Job.deadline_at < utcnow(-DEADLINE_GRACE),
            ),
        )
        with self._read_rows() as connection:  # nothing to do is the rule, and should lock nothing
            some = (sa.exists().where(which) for which in (expired, late))
            if not connection.scalar(sa.select(sa.or_(*some))):
                return Swept(rescued=[], failed=[], stopped=[])
        with self._write() as connection:
            stopped = _end_lost_of_ended(connection, expired)
            rescued, failed = _take_back(connection, expired)
            # An attempt that still runs ends later, as that of a cancelled job.
            overdue = connection.scalars(
                sa.update(Job)
                .where(Job.id.in_(free(late)))
                .values(
                    status=Status.FAILED,
                    finished_at=utcnow(),
                    error_code="deadline_exceeded",
                    error_message=PAST_DEADLINE,
                )
                .returning(Job.id)
            )
            return Swept(rescued=rescued, failed=[*failed, *overdue], stopped=stopped)

    def delete_older(self, days: int, *, limit: int = 100) -> int:
        """Delete jobs that ended more than ``days`` days ago, the oldest first; return how many.

        Args:
            days: how long jobs are kept.
            limit: the most jobs to delete: nobody else can write to SQLite meanwhile.
        """
        # One whose attempt still runs is left for later.
        old = free(sa.and_(Job.finished_at < ago(days * 86_400.0), Job.worker_id.is_(None)))
        with self._write() as connection:
            oldest = old.order_by(Job.finished_at).limit(limit)
            return connection.execute(sa.delete(Job).where(Job.id.in_(oldest))).rowcount


def _end_lost_of_ended(connection: sa.Connection, expired: sa.ColumnElement[bool]) -> list[str]:
    """End the attempts of ended jobs whose workers stopped answering; return the jobs."""
    ended = connection.execute(
        sa.update(Job)
        .where(Job.id.in_(free(sa.and_(expired, Job.finished_at.is_not(None)))))
        .values(lease_expires_at=None, worker_id=None)
        .returning(Job.id, Job.lease_token, Job.status)
    ).all()
    for job_id, token, status in ended:
        end_stopped(connection, job_id, token, status, error=LOST)
    return [row.id for row in ended]


def _take_back(
    connection: sa.Connection, expired: sa.ColumnElement[bool]
) -> tuple[list[str], list[str]]:
    """Take back the stages whose leases ran out; return their jobs, and those that fail by it."""
    lost = connection.execute(
        sa.update(Job)
        .where(Job.id.in_(free(sa.and_(expired, Job.finished_at.is_(None)))))
        .values(lease_expires_at=None, worker_id=None, ready_at=utcnow(), published_at=None)
        .returning(Job.id, Job.stage_index, Job.lease_token)
    ).all()
    failed = []
    for job_id, stage_index, token in lost:
        end_attempt(connection, job_id, token, AttemptStatus.LOST, error=LOST)
        count = connection.scalar(statements.LOST, {"job": job_id, "stage": stage_index}) or 0
        if count >= MAX_LOST:
            role = pipeline.stages(pipeline.MAX_ROUNDS)[stage_index].role
            connection.execute(
                sa.update(Job)
                .where(Job.id == job_id)
                .values(
                    status=Status.FAILED,
                    finished_at=utcnow(),
                    error_code="worker_lost",
                    error_message=f"{count} workers were lost while they ran its stage "
                    f"{stage_index} ({role})",
                )
            )
            failed.append(job_id)
    return [row.id for row in lost], failed
