"""Statements for metrics: depths and ages of what waits, and what has ended lately.

Each reads an index up to a limit. None reads a text.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection
from typing import Any

import sqlalchemy as sa

from jobs.column_types import UTCDateTime
from jobs.models import Attempt, AttemptStatus, Job, WebhookDelivery
from jobs.statements.jobs import IS_LEASED
from jobs.statements.log import IS_UNSEALED

#: Attempts, and whether their jobs were imported.
_ATTEMPTS = sa.select(
    Attempt.id,
    Attempt.role,
    Attempt.status,
    Attempt.prompt_tokens,
    Attempt.output_tokens,
    Attempt.queued_at,
    Attempt.started_at,
    Attempt.first_token_at,
    Attempt.finished_at,
    Job.origin_proof.is_not(None).label("is_imported"),
).join(Job, Job.id == Attempt.job_id)


def pending_deliveries(connection: sa.Connection, limit: int) -> tuple[int, dt.datetime | None]:
    """Return how many webhooks are to be sent, up to a limit, and when the first of them is due."""
    due = sa.select(WebhookDelivery.next_attempt_at).where(
        WebhookDelivery.next_attempt_at.is_not(None)
    )
    times = due.limit(limit).subquery()
    first = sa.func.min(times.c.next_attempt_at, type_=UTCDateTime())
    row = connection.execute(sa.select(sa.func.count(), first).select_from(times)).one()
    return row[0], row[1]


def oldest_unsealed(connection: sa.Connection) -> dt.datetime | None:
    """Return when the job ended that has waited longest for its entry in the log."""
    query = sa.select(Job.finished_at).where(IS_UNSEALED).order_by(Job.finished_at).limit(1)
    return connection.scalar(query)


def last_attempt(connection: sa.Connection) -> int:
    """Return the id of the newest attempt; 0 if there is none."""
    return connection.scalar(sa.select(sa.func.max(Attempt.id))) or 0


def running_attempts(connection: sa.Connection, limit: int) -> list[int]:
    """Return the ids of running attempts, up to a limit."""
    leased = sa.select(Job.id, Job.lease_token).where(IS_LEASED).limit(limit).subquery()
    query = (
        sa.select(Attempt.id)
        .join(leased, Attempt.job_id == leased.c.id)
        .where(Attempt.lease_token == leased.c.lease_token, Attempt.status == AttemptStatus.RUNNING)
    )
    return list(connection.scalars(query))


def attempts_by_id(connection: sa.Connection, ids: Collection[int]) -> list[sa.Row[Any]]:
    """Return the attempts with some ids."""
    return list(connection.execute(_ATTEMPTS.where(Attempt.id.in_(ids))))


def attempts_after(connection: sa.Connection, last: int, limit: int) -> list[sa.Row[Any]]:
    """Return the attempts that were added after one, in their order."""
    query = _ATTEMPTS.where(Attempt.id > last).order_by(Attempt.id).limit(limit)
    return list(connection.execute(query))


def jobs_ended_after(
    connection: sa.Connection, after: tuple[dt.datetime, str], limit: int
) -> list[sa.Row[Any]]:
    """Return jobs in the order in which they ended: id, status and times, and whether they were imported.

    Args:
        connection: in any transaction.
        after: ``finished_at`` and id of the job before them; the id may be empty.
        limit: of rows.
    """
    is_imported = Job.origin_proof.is_not(None).label("is_imported")
    columns = (Job.id, Job.status, Job.created_at, Job.finished_at, is_imported)
    time, job_id = sa.literal(after[0], UTCDateTime()), after[1]
    later = sa.or_(Job.finished_at > time, Job.id > job_id)
    query = (
        sa.select(*columns)
        .where(Job.finished_at.is_not(None), Job.finished_at >= time, later)
        .order_by(Job.finished_at, Job.id)
        .limit(limit)
    )
    return list(connection.execute(query))
