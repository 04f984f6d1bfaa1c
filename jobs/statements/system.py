"""Statements on all that runs and waits. Each reads at most `CAP` rows, whatever the history and the queue."""

from __future__ import annotations

import datetime as dt
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from jobs.database_clock import utcnow_once
from jobs.models import (
    Attempt,
    AttemptStatus,
    DeliveryStatus,
    Job,
    LogCheckpoint,
    WebhookDelivery,
    WebhookEndpoint,
    Worker,
)
from jobs.statements.in_queue import CAP
from jobs.statements.jobs import IS_IN_PROGRESS, IS_LEASED
from jobs.statements.owners import is_owned
from jobs.statements.paging import count_up_to
from jobs.statements.workers import IMPORTED, MAX_LOADING

#: The maximum number of workers.
MAX_WORKERS = 100
#: The maximum number of endpoints whose failed deliveries are looked at.
MAX_ENDPOINTS = 50


def list_workers(session: Session) -> list[Worker]:
    """Return the workers that have not stopped and were seen lately, the last seen first."""
    seen = sa.and_(Worker.stopped_at.is_(None), Worker.seen_at > utcnow_once(-MAX_LOADING))
    query = sa.select(Worker).where(seen).order_by(Worker.seen_at.desc()).limit(MAX_WORKERS)
    return list(session.scalars(query))


def list_last_seen(session: Session, limit: int) -> list[Worker]:
    """Return the workers that were seen last, whatever became of them; not those of imported jobs."""
    query = sa.select(Worker).order_by(Worker.seen_at.desc()).limit(limit)
    return [w for w in session.scalars(query) if w.tokenizer_digest != IMPORTED]


def list_failed_deliveries(
    session: Session, owner: str | None, limit: int
) -> list[tuple[WebhookDelivery, WebhookEndpoint]]:
    """Return the newest deliveries that were given up, of the newest `MAX_ENDPOINTS` endpoints of an owner."""
    endpoints = (
        sa.select(WebhookEndpoint)
        .where(is_owned(WebhookEndpoint.owner, owner))
        .order_by(WebhookEndpoint.created_at.desc())
        .limit(MAX_ENDPOINTS)
    )
    found = {each.id: each for each in session.scalars(endpoints)}
    if not found:
        return []
    newest = WebhookDelivery.created_at.desc(), WebhookDelivery.id.desc()
    # The index has the deliveries of each endpoint in order, and not those of several.
    pages = (
        sa.select(WebhookDelivery.id)
        .where(
            WebhookDelivery.endpoint_id == endpoint_id,
            WebhookDelivery.status == DeliveryStatus.FAILED,
        )
        .order_by(*newest)
        .limit(limit)
        for endpoint_id in found
    )
    ids = sa.union_all(*(sa.select(page.subquery().c.id) for page in pages))
    query = sa.select(WebhookDelivery).where(WebhookDelivery.id.in_(ids)).order_by(*newest)
    return [(each, found[each.endpoint_id]) for each in session.scalars(query.limit(limit))]


def count_running(connection: sa.Connection) -> dict[str, int]:
    """Return how many stages each worker runs, by its id."""
    leased = sa.select(Job.worker_id).where(IS_LEASED).limit(CAP).subquery()
    query = sa.select(leased.c.worker_id, sa.func.count()).group_by(leased.c.worker_id)
    return {str(row[0]): row[1] for row in connection.execute(query)}


def count_in_progress(
    connection: sa.Connection, limit: int = CAP
) -> list[sa.Row[*tuple[Any, ...]]]:
    """Return numbers of jobs that have begun, by owner, by the index of the stage, and by whether it runs.

    Args:
        connection: in any transaction.
        limit: the maximum number of jobs.
    """
    is_running = Job.worker_id.is_not(None).label("is_running")
    begun = (
        sa.select(Job.owner, Job.stage_index, is_running).where(IS_IN_PROGRESS).limit(limit)
    ).subquery()
    groups = (begun.c.owner, begun.c.stage_index, begun.c.is_running)
    query = sa.select(*groups, sa.func.count().label("jobs")).group_by(*groups)
    return list(connection.execute(query))


def count_last_attempts(connection: sa.Connection) -> dict[AttemptStatus, int]:
    """Return how the last `CAP` attempts ended, or that they run."""
    last = sa.select(Attempt.status).order_by(Attempt.id.desc()).limit(CAP).subquery()
    query = sa.select(last.c.status, sa.func.count()).group_by(last.c.status)
    return {row[0]: row[1] for row in connection.execute(query)}


def count_pending_deliveries(connection: sa.Connection) -> int:
    """Count the webhooks that are to be sent, up to `CAP`."""
    is_pending = WebhookDelivery.next_attempt_at.is_not(None)
    return count_up_to(connection, CAP, sa.select(WebhookDelivery.endpoint_id).where(is_pending))


def last_checkpoint(connection: sa.Connection) -> dt.datetime | None:
    """Return when the log was last signed."""
    query = sa.select(LogCheckpoint.created_at).order_by(LogCheckpoint.size.desc()).limit(1)
    return connection.scalar(query)
