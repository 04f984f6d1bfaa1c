"""Times of open jobs that lie in the future, because the database's clock was set back after they were written.

Without a correction, a lost worker's lease would expire, and a lost message be missed, only when the clock has come to
these times again: hours later, if it was hours wrong.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from jobs.database_clock import utcnow, utcnow_once
from jobs.models import Job
from jobs.pipeline import MAX_PRIORITY
from jobs.statements.jobs import IS_IN_PROGRESS, IS_LEASED, IS_QUEUED
from jobs.timing import FUTURE_MARGIN, LEASE

_LEASE = sa.and_(IS_LEASED, Job.lease_expires_at > utcnow(LEASE + FUTURE_MARGIN))
_MESSAGE = sa.and_(sa.or_(IS_QUEUED, IS_IN_PROGRESS), Job.published_at > utcnow_once(FUTURE_MARGIN))


def _newest(priority: int) -> sa.ScalarSelect[Any]:
    """Select when the last message of a priority was published: the end of its range in the index.

    PostgreSQL knows no time to compare with, and would read the queue to find out whether there is a later one.
    """
    published = sa.select(Job.published_at).where(
        IS_QUEUED, Job.priority == priority, Job.published_at.is_not(None)
    )
    return published.order_by(Job.published_at.desc()).limit(1).scalar_subquery()


_LAST_LEASE = sa.select(sa.func.max(Job.lease_expires_at)).where(IS_LEASED).scalar_subquery()
_LAST_STAGE = sa.select(sa.func.max(Job.published_at)).where(IS_IN_PROGRESS).scalar_subquery()
_ANY = sa.select(
    sa.or_(
        sa.func.coalesce(utcnow_once(LEASE + FUTURE_MARGIN) < _LAST_LEASE, sa.false()),
        *(
            sa.func.coalesce(last > utcnow_once(FUTURE_MARGIN), sa.false())
            for last in (_LAST_STAGE, *map(_newest, range(MAX_PRIORITY + 1)))
        ),
    )
)


def any_found(connection: sa.Connection) -> bool:
    """Return whether there are any: a look at an index for each priority, and at the jobs that have begun."""
    return bool(connection.scalar(_ANY))


def correct(connection: sa.Connection) -> None:
    """Let leases that end too late end as if they had been extended now, and messages be as old as if published now."""
    connection.execute(sa.update(Job).where(_LEASE).values(lease_expires_at=utcnow(LEASE)))
    connection.execute(sa.update(Job).where(_MESSAGE).values(published_at=utcnow()))
