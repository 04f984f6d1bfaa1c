"""What every worker does for all jobs: it brings lost work back, and ends what must end."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from jobs import pipeline
from jobs.db import utcnow
from jobs.models import OPEN, AttemptStatus, Job, Status
from jobs.store import statements
from jobs.store.base import Base
from jobs.store.running import MAX_LOST
from jobs.store.statements import IS_OPEN, end_attempt

SWEEP_INTERVAL = 5.0
#: Seconds between a commit and the sweep's own publishing: time for the web's, or for the chain's.
PUBLISH_GRACE = 2.0
#: Seconds past its deadline after which a job is ended whoever holds its lease.
DEADLINE_GRACE = 30.0
#: Seconds a ready stage may wait in Redis before the sweep suspects that its message is gone.
REPUBLISH_AFTER = 10.0
#: Seconds after which a message is sent again although it may well be in the queue.
DOUBT_AFTER = 300.0
PAST_DEADLINE = "the job ran past its deadline (HELIXQ_JOB_TIMEOUT)"


@dataclass(frozen=True)
class Swept:
    """What a sweep found."""

    #: Jobs taken back from workers that stopped answering.
    rescued: list[str]
    #: Jobs that ended because of it: three workers lost, or the deadline passed.
    failed: list[str]


@dataclass(frozen=True)
class Unpublished:
    """A job whose next stage waits without a message in Redis."""

    job_id: str
    position: int
    rounds: int
    priority: int


class Sweeping(Base):
    """The work that nobody is at."""

    def busy(self) -> bool:
        """Whether any job has not ended: nothing else can need a sweep."""
        with self._read_rows() as connection:
            return bool(connection.scalar(sa.select(sa.exists().where(IS_OPEN))))

    def sweep(self) -> Swept:
        """Take back the stages of workers that stopped answering, and end what must end."""
        overdue = sa.or_(
            sa.and_(Job.lease_expires_at.is_(None), Job.deadline_at < utcnow()),
            # Whoever holds the lease should have ended it long ago.
            Job.deadline_at < utcnow(-DEADLINE_GRACE),
        )
        with self._read_rows() as connection:  # nothing to do is the rule, and should lock nothing
            if not connection.scalar(
                sa.select(
                    sa.exists().where(
                        IS_OPEN,
                        Job.status == Status.IN_PROGRESS,
                        sa.or_(Job.lease_expires_at < utcnow(), overdue),
                    )
                )
            ):
                return Swept(rescued=[], failed=[])
        with self._write() as connection:
            expired = connection.execute(
                sa.update(Job)
                .where(IS_OPEN, Job.status == Status.IN_PROGRESS, Job.lease_expires_at < utcnow())
                .values(lease_expires_at=None, worker_id=None, ready_at=utcnow(), published_at=None)
                .returning(Job.id, Job.position, Job.lease_token)
            ).all()
            failed: list[str] = []
            for job_id, position, token in expired:
                message = "the worker that ran this attempt stopped answering"
                end_attempt(connection, job_id, token, AttemptStatus.LOST, error=message)
                lost = connection.scalar(statements.LOST, {"job": job_id, "stage": position})
                if (lost or 0) >= MAX_LOST:
                    connection.execute(
                        sa.update(Job)
                        .where(Job.id == job_id)
                        .values(
                            status=Status.FAILED,
                            finished_at=utcnow(),
                            error_code="worker_lost",
                            error_message=f"{lost} workers were lost while they ran its stage "
                            f"{position} ({pipeline.stages(pipeline.MAX_ROUNDS)[position].role})",
                        )
                    )
                    failed.append(job_id)
            late = connection.execute(
                sa.update(Job)
                .where(IS_OPEN, Job.status == Status.IN_PROGRESS, overdue)
                .values(
                    status=Status.FAILED,
                    finished_at=utcnow(),
                    lease_expires_at=None,
                    worker_id=None,
                    error_code="deadline_exceeded",
                    error_message=PAST_DEADLINE,
                )
                .returning(Job.id, Job.lease_token)
            ).all()
            for job_id, token in late:
                end_attempt(connection, job_id, token, AttemptStatus.FAILED, error=PAST_DEADLINE)
                failed.append(job_id)
            return Swept(rescued=[row.id for row in expired], failed=failed)

    def unpublished(self, *, queue_empty: bool, limit: int = 1000) -> list[Unpublished]:
        """Find jobs whose next stage waits without a message that will run it.

        That is: never published, given back or rescued; or half done and not continued,
        although later stages go first; or overtaken by a question that came later; or still
        waiting although Redis has no messages, or for so long that nobody can tell. A message
        too many does no harm.
        """
        with self._read_rows() as connection:
            suspect: sa.ColumnElement[bool] = sa.true()
            if not queue_empty:
                suspect = sa.or_(
                    Job.position > 0,
                    Job.published_at < utcnow(-DOUBT_AFTER),
                    *_overtaken(connection),
                )
            rows = connection.execute(
                sa.select(Job.id, Job.position, Job.rounds, Job.priority)
                .where(
                    IS_OPEN,
                    Job.lease_expires_at.is_(None),
                    Job.ready_at < utcnow(-PUBLISH_GRACE),
                    sa.or_(
                        Job.published_at.is_(None),
                        sa.and_(Job.published_at < utcnow(-REPUBLISH_AFTER), suspect),
                    ),
                )
                .order_by(Job.position.desc(), Job.priority.desc(), Job.created_at)
                .limit(limit)
            )
            return [Unpublished(*row) for row in rows]

    def delete_older(self, days: int) -> int:
        """Delete jobs that ended more than ``days`` days ago; return how many."""
        with self._write() as connection:
            result = connection.execute(
                sa.delete(Job).where(
                    Job.status.not_in(OPEN), Job.finished_at < utcnow(-days * 86_400.0)
                )
            )
            return result.rowcount


def _overtaken(connection: sa.Connection) -> list[sa.ColumnElement[bool]]:
    """Say which jobs' messages must have been taken.

    Redis gives out the messages of a priority in their order, and higher priorities first: a job
    that was published before another one came, which was not more urgent and has started, has
    lost its message with whoever took it.
    """
    oldest = sa.select(sa.func.min(Job.published_at)).where(IS_OPEN, Job.status == Status.QUEUED)
    started = connection.execute(
        sa.select(Job.priority, sa.func.max(Job.created_at))
        .where(
            Job.created_at > oldest.scalar_subquery(),
            Job.started_at < utcnow(-REPUBLISH_AFTER),
        )
        .group_by(Job.priority)
    )
    return [
        sa.and_(Job.priority >= priority, Job.published_at < newest) for priority, newest in started
    ]
