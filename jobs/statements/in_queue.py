"""Statements on the jobs that wait for their first stage: how many there are, and how fast they move on."""

from __future__ import annotations

import datetime as dt

import sqlalchemy as sa

from jobs.column_types import UTCDateTime
from jobs.models import Job
from jobs.statements.jobs import IS_QUEUED
from jobs.statements.paging import count_up_to

#: Counts of what may be long end here.
CAP = 1000


def count(connection: sa.Connection, limit: int = CAP) -> int:
    """Count the jobs that wait for their first stage, lines of batches included, up to a limit."""
    return count_up_to(connection, limit, sa.select(Job.priority).where(IS_QUEUED))


def count_by_owner(connection: sa.Connection) -> dict[str, int]:
    """Return how many of the first `CAP` jobs that wait for their first stage each owner has."""
    queued = sa.select(Job.owner).where(IS_QUEUED).limit(CAP).subquery()
    query = sa.select(queued.c.owner, sa.func.count()).group_by(queued.c.owner)
    return {row[0]: row[1] for row in connection.execute(query)}


def count_without_lines(connection: sa.Connection) -> int:
    """Count the jobs of all owners that wait for their first stage, but for the lines of batches."""
    # Two counts of an index each. A condition on both would be looked up in the rows.
    queued = sa.select(sa.func.count()).where(IS_QUEUED).scalar_subquery()
    lines = sa.select(sa.func.count()).where(IS_QUEUED, Job.batch_id.is_not(None)).scalar_subquery()
    return connection.scalar(sa.select(queued - lines)) or 0


def count_of_key(connection: sa.Connection, key_id: str) -> int:
    """Count the jobs of an API key that wait for their first stage, but for the lines of batches."""
    query = sa.select(sa.func.count()).where(
        IS_QUEUED, Job.key_id == key_id, Job.batch_id.is_(None)
    )
    return connection.scalar(query) or 0


def oldest(connection: sa.Connection) -> dt.datetime | None:
    """Return when the job was accepted that has waited longest for its first stage."""
    query = sa.select(Job.created_at).where(IS_QUEUED).order_by(Job.created_at, Job.id).limit(1)
    return connection.scalar(query)


def count_ahead(
    connection: sa.Connection, priority: int, published_at: dt.datetime | None
) -> tuple[int, int]:
    """Return how many queued jobs come before one, and how many there are, each up to `CAP`.

    Args:
        connection: in any transaction.
        priority: of the job.
        published_at: when its message was published; None if it was not, which places it last.
    """
    earlier: sa.ColumnElement[bool] = Job.published_at.is_not(None)
    if published_at is not None:
        earlier = Job.published_at < sa.literal(published_at, UTCDateTime())

    def counted(*conditions: sa.ColumnElement[bool]) -> sa.ScalarSelect[int]:
        # In the order of the index of queued jobs: else PostgreSQL may read the table, where it expects
        # to find `CAP` of them soon.
        order = Job.priority, Job.published_at
        rows = sa.select(Job.id).where(IS_QUEUED, *conditions).order_by(*order).limit(CAP)
        return sa.select(sa.func.count()).select_from(rows.subquery()).scalar_subquery()

    more_urgent, before, queued = connection.execute(
        sa.select(
            counted(Job.priority > priority),
            counted(Job.priority == priority, earlier),
            counted(),
        )
    ).one()
    return min(more_urgent + before, CAP), queued


def last_ends(connection: sa.Connection, limit: int) -> list[dt.datetime]:
    """Return when the jobs ended that ended last, the newest first."""
    query = sa.select(Job.finished_at).where(Job.finished_at.is_not(None))
    times = connection.scalars(query.order_by(Job.finished_at.desc()).limit(limit))
    return [time for time in times if time is not None]
