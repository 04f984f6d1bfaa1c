"""Jobs whose model nobody has any more: they start again, with one that is there."""

from __future__ import annotations

import datetime as dt

import sqlalchemy as sa

from jobs.db import ago, utcnow
from jobs.models import Job, Worker, WorkerState
from jobs.store.base import Base
from jobs.store.statements import IS_IN_PROGRESS
from jobs.store.workers import WORKER_STALE

#: The most jobs that one call starts again.
LIMIT = 1000


class Restarting(Base):
    """One job, one model, also when its workers do not come back."""

    def restart(self, timeout: float) -> list[str]:
        """Start jobs again for whose model no worker has been ready lately, if one of another is.

        A job keeps its seed, its deadline and its earlier attempts. Its next run is settled on the
        model of whoever claims its first stage.

        Args:
            timeout: seconds that a stage waits for a worker with the job's model.

        Returns:
            The jobs' ids.
        """
        with self._read_rows() as connection:  # nothing to do is the rule, and should lock nothing
            gone = _gone(connection, timeout)
        if not gone:
            return []
        reason = f"no worker with the model of the run before was ready for {timeout:g} seconds"
        with self._write() as connection:
            found = connection.execute(
                sa.select(
                    Job.id, Job.lease_token, Job.run, Job.model, Job.restarts, utcnow().label("now")
                )
                .where(_waiting(timeout), Job.model.in_(gone))
                .limit(LIMIT)
            ).all()
            return [job.id for job in found if _restart(connection, job, reason)]


def _waiting(timeout: float) -> sa.ColumnElement[bool]:
    """Choose jobs that have begun and whose next stage nobody has taken for so long."""
    return sa.and_(
        IS_IN_PROGRESS,
        Job.worker_id.is_(None),
        Job.model.is_not(None),
        Job.ready_at < ago(timeout),
    )


def _gone(connection: sa.Connection, timeout: float) -> list[str]:
    """Find the models that jobs wait for and nobody has had lately; none if nobody else is there."""
    waiting = set(connection.scalars(sa.select(Job.model).where(_waiting(timeout)).distinct()))
    if not waiting:
        return []
    lives = sa.and_(Worker.state == WorkerState.READY, Worker.seen_at > ago(WORKER_STALE))
    ready = set(connection.scalars(sa.select(Worker.model).where(lives).distinct()))
    if not ready:
        return []
    lately = set(
        connection.scalars(
            sa.select(Worker.model)
            .where(Worker.seen_at > ago(timeout), Worker.ready_at.is_not(None))
            .distinct()
        )
    )
    return sorted(model for model in waiting - ready - lately if model is not None)


def _restart(connection: sa.Connection, job: sa.Row[tuple[object, ...]], reason: str) -> bool:
    """Begin a job's next run, unless somebody else did or has claimed its stage meanwhile."""
    now: dt.datetime = job.now
    told = {"run": job.run + 1, "at": now.isoformat(), "model": job.model, "reason": reason}
    result = connection.execute(
        sa.update(Job)
        .where(
            Job.id == job.id,
            Job.run == job.run,
            Job.lease_token == job.lease_token,
            Job.worker_id.is_(None),
            Job.finished_at.is_(None),
        )
        .values(
            run=Job.run + 1,
            restarts=[*job.restarts, told],
            model=None,
            stage_index=0,
            ready_at=utcnow(),
            published_at=None,
        )
    )
    return bool(result.rowcount)
