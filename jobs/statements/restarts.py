"""Statements on jobs that wait for a worker with their model."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, cast

import sqlalchemy as sa

from jobs.database_clock import utcnow, utcnow_once
from jobs.models import Job
from jobs.statements.jobs import IS_IN_PROGRESS


def waiting_models(connection: sa.Connection, timeout: float) -> set[str]:
    """Return the models of the jobs that have waited for ``timeout`` seconds."""
    models = connection.scalars(sa.select(Job.model).where(_has_waited(timeout)).distinct())
    return set(cast("Iterable[str]", models))  # the jobs of the condition have one


def find_waiting(
    connection: sa.Connection, timeout: float, models: Collection[str], limit: int
) -> list[sa.Row[*tuple[Any, ...]]]:
    """Return id, lease token, run, model and restarts of jobs with some models that have waited, and the time (``now``).

    Args:
        connection: of the unit of work.
        timeout: seconds that they have waited.
        models: of the jobs.
        limit: the maximum number of jobs.
    """
    columns = (Job.id, Job.lease_token, Job.run, Job.model, Job.restarts, utcnow().label("now"))
    query = sa.select(*columns).where(_has_waited(timeout), Job.model.in_(models))
    return list(connection.execute(query.limit(limit)))


def _has_waited(timeout: float) -> sa.ColumnElement[bool]:
    """Return the condition of jobs that have begun and whose next stage nobody claimed for so long."""
    return sa.and_(
        IS_IN_PROGRESS,
        Job.worker_id.is_(None),
        Job.model.is_not(None),
        Job.ready_at < utcnow_once(-timeout),
    )
