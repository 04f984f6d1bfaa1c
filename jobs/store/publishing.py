"""The outbox: stages that wait without a message that will run them."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from jobs.db import UTCDateTime, ago, utcnow
from jobs.models import Job, Status
from jobs.pipeline import MAX_PRIORITY
from jobs.store.base import Base
from jobs.store.statements import IS_IN_PROGRESS, IS_OPEN, IS_QUEUED, free

#: Seconds a ready stage may wait in Redis before the sweep suspects that its message is gone.
REPUBLISH_AFTER = 10.0
#: Seconds after which a message is sent again although it may well be in the queue.
DOUBT_AFTER = 300.0
#: Jobs that ended lately and are looked at as to which questions they overtook.
EVIDENCE = 500


@dataclass(frozen=True)
class Unpublished:
    """A job whose next stage waits without a message in Redis."""

    job_id: str
    stage_index: int
    rounds: int
    #: The question's; the highest for a job that has begun.
    priority: int
    #: The one that the job's run is settled on.
    model: str | None


def _lost(priority: int) -> sa.Select[str]:
    """Choose questions of a priority that were published before ``before_…``, oldest first."""
    before = sa.bindparam(f"before_{priority}", type_=UTCDateTime())
    oldest = (
        sa.select(Job.id)
        .where(IS_QUEUED, Job.priority == priority, Job.published_at < before)
        .order_by(Job.published_at)
        .limit(sa.bindparam("limit"))
        .subquery()
    )
    return sa.select(oldest.c.id)


#: A range of the index for each priority, so that the questions that just wait are not looked at.
_LOST = sa.union_all(*(_lost(priority) for priority in range(MAX_PRIORITY, -1, -1)))

_PRIORITIES = range(MAX_PRIORITY + 1)

#: What a message of a job is to have.
_PRIORITY = sa.case((Job.status == Status.IN_PROGRESS, MAX_PRIORITY), else_=Job.priority)


class Publishing(Base):
    """What Redis should have a message for."""

    def unpublish(self, job_id: str, stage_index: int) -> None:
        """Note that there is no message for ``stage_index``: the sweep sends one."""
        with self._write() as connection:
            connection.execute(
                sa.update(Job)
                .where(Job.id == job_id, Job.stage_index == stage_index, Job.worker_id.is_(None))
                .values(published_at=None)
            )

    def take_unpublished(
        self, *, queue_empty: bool, model: str, limit: int = 100
    ) -> list[Unpublished]:
        """Take jobs whose next stage waits without a message that will run it, to publish them.

        That is: never published, given back or taken back; or begun and not continued,
        although such jobs go first; or overtaken by a question that came later; or still
        waiting although Redis has no messages, or for so long that nobody can tell. A message
        too many does no harm.

        They count as published from now on, so that of several sweeps one takes each.

        Args:
            queue_empty: whether Redis has no messages of questions.
            model: whose jobs to take, besides those without one yet. Those of another are for its
                own workers to publish: while there are none, nobody would take their messages.
            limit: the most jobs to take.

        Returns:
            the jobs, those first that should be published first.
        """
        with self._read_rows() as connection:  # nothing to do is the rule, and should lock nothing
            found = _find(connection, queue_empty, model, limit)
        if not found:
            return []
        waiting = sa.and_(
            Job.id.in_(found),
            Job.worker_id.is_(None),
            Job.finished_at.is_(None),
            sa.or_(Job.published_at.is_(None), Job.published_at < utcnow(-REPUBLISH_AFTER)),
        )
        with self._write() as connection:
            taken = connection.execute(
                sa.update(Job)
                .where(Job.id.in_(free(waiting)))
                .values(published_at=utcnow())
                .returning(Job.id, Job.stage_index, Job.rounds, _PRIORITY, Job.model)
            ).all()
        place = {job_id: number for number, job_id in enumerate(found)}
        return [Unpublished(*row) for row in sorted(taken, key=lambda row: place[row.id])]

    def put_back(self, taken: Sequence[Unpublished]) -> None:
        """Note that jobs that were taken could not be published."""
        stages = [(job.job_id, job.stage_index) for job in taken]
        with self._write() as connection:
            connection.execute(
                sa.update(Job)
                .where(sa.tuple_(Job.id, Job.stage_index).in_(stages), Job.worker_id.is_(None))
                .values(published_at=None)
            )


def _find(connection: sa.Connection, queue_empty: bool, model: str, limit: int) -> list[str]:
    """Find jobs to publish: what never was or has begun, then questions by their priority."""
    columns = (Job.id, Job.stage_index, Job.priority)
    free_ = sa.and_(Job.worker_id.is_(None), sa.or_(Job.model.is_(None), Job.model == model))
    outbox = connection.execute(
        sa.select(*columns)
        .where(IS_OPEN, Job.published_at.is_(None), free_)
        .order_by(Job.created_at)
        .limit(limit)
    ).all()
    begun = connection.execute(
        sa.select(*columns)
        .where(IS_IN_PROGRESS, Job.published_at < utcnow(-REPUBLISH_AFTER), free_)
        .order_by(Job.published_at)
    ).all()
    first = sorted([*outbox, *begun], key=lambda row: (-row.stage_index, -row.priority))
    found = [row.id for row in first][:limit]
    if len(found) < limit:
        before = _bounds(connection, queue_empty)
        bounds = {f"before_{priority}": before[priority] for priority in _PRIORITIES}
        found += connection.scalars(_LOST, {**bounds, "limit": limit - len(found)})
    return found[:limit]


def _bounds(connection: sa.Connection, queue_empty: bool) -> list[dt.datetime]:
    """Return for each priority: what was published before then should have been taken by now.

    Redis gives out the messages of a priority in their order, and higher priorities first: a job
    that was published before another one came, which was not more urgent and has started, has
    lost its message with whoever took it.
    """
    recent, doubt = connection.execute(
        sa.select(utcnow(-REPUBLISH_AFTER), utcnow(-DOUBT_AFTER))
    ).one()
    if queue_empty:
        return [recent for _ in _PRIORITIES]
    ended = (
        sa.select(Job.priority, Job.created_at, Job.started_at)
        .where(Job.finished_at < ago(REPUBLISH_AFTER))
        .order_by(Job.finished_at.desc())
        .limit(EVIDENCE)
        .subquery()
    )
    started = sa.union_all(
        sa.select(ended.c.priority, ended.c.created_at).where(ended.c.started_at.is_not(None)),
        sa.select(Job.priority, Job.created_at).where(
            IS_IN_PROGRESS, Job.started_at < utcnow(-REPUBLISH_AFTER)
        ),
    ).subquery()
    newest = dict(
        connection.execute(
            sa.select(started.c.priority, sa.func.max(started.c.created_at)).group_by(
                started.c.priority
            )
        ).all()
    )
    bounds: list[dt.datetime] = []
    overtaken = doubt
    for priority in _PRIORITIES:
        overtaken = max(overtaken, min(recent, newest.get(priority, doubt)))
        bounds.append(overtaken)
    return bounds
