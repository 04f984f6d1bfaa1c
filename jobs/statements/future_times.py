"""Times of open jobs that lie in the future, because the database's clock was set back after they were written.

Without a correction, a lost worker's lease would expire, and a lost message be missed, only when the clock has come to
these times again: hours later, if it was hours wrong.
"""

from __future__ import annotations

import sqlalchemy as sa

from jobs.column_types import utcnow, utcnow_once
from jobs.models import Job
from jobs.pipeline import MAX_PRIORITY
from jobs.statements.jobs import IS_IN_PROGRESS, IS_LEASED, IS_QUEUED
from jobs.timing import LEASE

#: Seconds by which a time lies later than any that is written now.
MARGIN = 5.0

_LEASE = sa.and_(IS_LEASED, Job.lease_expires_at > utcnow(LEASE + MARGIN))
#: A range of the index for each priority, so that the queue is not read.
_MESSAGES = [
    *(
        sa.and_(IS_QUEUED, Job.priority == priority, Job.published_at > utcnow_once(MARGIN))
        for priority in range(MAX_PRIORITY + 1)
    ),
    sa.and_(IS_IN_PROGRESS, Job.published_at > utcnow_once(MARGIN)),
]
#: Conditions of the jobs that `correct` changes: a look at an index each.
CONDITIONS = (_LEASE, *_MESSAGES)


def correct(connection: sa.Connection) -> None:
    """Let leases that end too late end as if they had been extended now, and messages be as old as if published now."""
    connection.execute(sa.update(Job).where(_LEASE).values(lease_expires_at=utcnow(LEASE)))
    for condition in _MESSAGES:
        connection.execute(sa.update(Job).where(condition).values(published_at=utcnow()))
