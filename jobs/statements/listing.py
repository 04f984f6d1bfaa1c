"""Statements for what the page of jobs shows beside the list itself. Each reads a bounded number of rows."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import sqlalchemy as sa

from jobs.models import Attempt, Job, Status
from jobs.pipeline import Role
from jobs.statements.job_lists import KEY, Place, cursor
from jobs.statements.jobs import IndexedFilters


class Opening(NamedTuple):
    """The beginning of a text."""

    role: Role
    text: str


def openings(
    connection: sa.Connection, job_ids: Collection[str], length: int
) -> dict[str, Opening]:
    """Return how the last draft or regeneration of each job begins: up to ``length`` characters."""
    last = (
        sa.select(sa.func.max(Attempt.id))
        .where(
            Attempt.job_id.in_(job_ids),
            Attempt.role != Role.CRITIC,
            Attempt.output.is_not(None),
        )
        .group_by(Attempt.job_id)
    )
    text = sa.type_coerce(sa.func.substr(Attempt.output, 1, length), Attempt.output.type)
    query = sa.select(Attempt.job_id, Attempt.role, text).where(Attempt.id.in_(last))
    return {job_id: Opening(role, text) for job_id, role, text in connection.execute(query)}


def count_by_status(
    connection: sa.Connection, filters: IndexedFilters, statuses: Collection[Status], limit: int
) -> dict[Status, int]:
    """Count the jobs of each of some statuses, up to ``limit``: entries of the index by status."""
    counts = [
        _count([Job.status == status, *filters.conditions()], limit).label(status.value)
        for status in statuses
    ]
    return dict(zip(statuses, connection.execute(sa.select(*counts)).one(), strict=True))


def count_newer(
    connection: sa.Connection,
    filters: IndexedFilters,
    statuses: Collection[Status],
    place: Place,
    limit: int,
) -> int:
    """Count the jobs after a place in the order of creation, with one of some statuses, up to ``limit``."""
    conditions = [*filters.conditions(), cursor(place) < KEY]
    # The index by status has the jobs of each in order, and not those of several.
    kinds = [[Job.status == status] for status in statuses] or [[]]
    counts = [
        _count([*kind, *conditions], limit).label(f"count_{number}")
        for number, kind in enumerate(kinds)
    ]
    return min(limit, sum(connection.execute(sa.select(*counts)).one()))


def _count(conditions: list[sa.ColumnElement[bool]], limit: int) -> sa.ScalarSelect[int]:
    # In order, or PostgreSQL may look for the few that it needs among all rows.
    some: sa.Select[int] = sa.select(sa.literal_column("1", sa.Integer)).select_from(Job)
    some = some.where(*conditions).order_by(Job.created_at, Job.id).limit(limit)
    return sa.select(sa.func.count()).select_from(some.subquery()).scalar_subquery()
