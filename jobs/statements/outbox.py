"""Statements on the outbox: the open jobs whose next stage has no message in Redis.

``published_at`` says when a message for a job's next stage was last handed to Redis, or was about to be.
It is null if there is none. A stage that has a message is published again if nobody claims it: messages
can be lost.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

import sqlalchemy as sa

from jobs.column_types import UTCDateTime
from jobs.database_clock import utcnow, utcnow_once
from jobs.models import Job, Status
from jobs.pipeline import MAX_PRIORITY, NextStage
from jobs.statements import pauses
from jobs.statements.jobs import IS_IN_PROGRESS, IS_OPEN, IS_QUEUED, select_unlocked

#: Seconds after which a message that nobody took may count as lost, if there is evidence.
REPUBLISH_AFTER = 10.0
#: Seconds after which it counts as lost without evidence.
REPUBLISH_ALWAYS_AFTER = 300.0
#: The number of jobs that ended last and serve as evidence of which questions were overtaken.
EVIDENCE = 500

_PRIORITIES = range(MAX_PRIORITY + 1)
#: The priority of a job's message.
_PRIORITY = sa.case((Job.status == Status.IN_PROGRESS, MAX_PRIORITY), else_=Job.priority)


def _queued_before(priority: int) -> sa.Select[str]:
    """Select the questions of a priority that were published before ``before_…``, oldest first."""
    before = sa.bindparam(f"before_{priority}", type_=UTCDateTime())
    oldest = (
        sa.select(Job.id)
        .where(IS_QUEUED, Job.priority == priority, Job.published_at < before)
        .order_by(Job.published_at)
        .limit(sa.bindparam("limit"))
        .subquery()
    )
    return sa.select(oldest.c.id)


#: One range of the index for each priority, so that questions whose messages are fine are not read.
_QUEUED_BEFORE = sa.union_all(*(_queued_before(priority) for priority in reversed(_PRIORITIES)))


def mark_unpublished(connection: sa.Connection, stages: Sequence[tuple[str, int]]) -> None:
    """Put stages into the outbox that no worker has claimed, given as (job id, stage index)."""
    connection.execute(
        sa.update(Job)
        .where(
            # For pairs alone, SQLite would read all jobs.
            Job.id.in_([job_id for job_id, _ in stages]),
            sa.tuple_(Job.id, Job.stage_index).in_(stages),
            Job.worker_id.is_(None),
        )
        .values(published_at=None)
    )


def find(connection: sa.Connection, *, queue_empty: bool, model: str, limit: int) -> list[str]:
    """Find jobs to publish: first those never published and those that have begun, then questions.

    Args:
        connection: in any transaction.
        queue_empty: whether Redis has no messages of questions.
        model: of the jobs to find, besides those without a model.
        limit: the maximum number of jobs.

    Returns:
        their ids, in the order in which to publish them.
    """
    columns = (Job.id, Job.stage_index, Job.priority)
    claimable = sa.and_(Job.worker_id.is_(None), sa.or_(Job.model.is_(None), Job.model == model))
    unpublished = connection.execute(
        sa.select(*columns)
        .where(IS_OPEN, Job.published_at.is_(None), claimable)
        .order_by(Job.created_at)
        .limit(limit)
    ).all()
    overtaken_stages = connection.execute(
        sa.select(*columns)
        .where(IS_IN_PROGRESS, Job.published_at < utcnow(-REPUBLISH_AFTER), claimable)
        .order_by(Job.published_at)
    ).all()
    rows = sorted(
        [*unpublished, *overtaken_stages], key=lambda row: (-row.stage_index, -row.priority)
    )
    ids = [row.id for row in rows][:limit]
    if len(ids) < limit:
        times = _lost_if_published_before(connection, queue_empty)
        parameters = {f"before_{priority}": times[priority] for priority in _PRIORITIES}
        ids += connection.scalars(_QUEUED_BEFORE, {**parameters, "limit": limit - len(ids)})
    return ids[:limit]


def take(connection: sa.Connection, ids: Sequence[str]) -> list[NextStage]:
    """Mark jobs that `find` returned as published, but for those that changed or were taken since.

    Returns:
        those that were marked, in the order of ``ids``.
    """
    condition = sa.and_(
        Job.id.in_(ids),
        Job.worker_id.is_(None),
        Job.finished_at.is_(None),
        sa.or_(Job.published_at.is_(None), Job.published_at < utcnow(-REPUBLISH_AFTER)),
    )
    rows = connection.execute(
        sa.update(Job)
        .where(Job.id.in_(select_unlocked(condition)))
        .values(published_at=utcnow())
        .returning(Job.id, Job.stage_index, Job.rounds, _PRIORITY, Job.model)
    ).all()
    order = {job_id: number for number, job_id in enumerate(ids)}
    return [NextStage(*row) for row in sorted(rows, key=lambda row: order[row.id])]


def _lost_if_published_before(connection: sa.Connection, queue_empty: bool) -> list[dt.datetime]:
    """Return a time for each priority: the messages of questions published before it are lost.

    Redis delivers higher priorities first, and the messages of one priority in their order. So a message
    is lost if a question that came after it, and is not more urgent, has started.
    """
    recent, old = (
        pauses.ago(connection, seconds) for seconds in (REPUBLISH_AFTER, REPUBLISH_ALWAYS_AFTER)
    )
    if queue_empty:
        return [recent for _ in _PRIORITIES]
    ended = (
        sa.select(Job.priority, Job.created_at, Job.started_at)
        .where(Job.finished_at < utcnow_once(-REPUBLISH_AFTER))
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
            sa.select(started.c.priority, sa.func.max(started.c.created_at))
            # Those that came before the clock was set back tell nothing.
            .where(started.c.created_at < utcnow_once())
            .group_by(started.c.priority)
        ).all()
    )
    times: list[dt.datetime] = []
    overtaken = old
    for priority in _PRIORITIES:
        overtaken = max(overtaken, min(recent, newest.get(priority, old)))
        times.append(overtaken)
    return times
