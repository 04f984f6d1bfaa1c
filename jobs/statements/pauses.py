"""Statements on pauses of the queue.

While a pause lasts, `leases.claim` claims nothing: the condition `IS_NOT_PAUSED` is part of its statement.
"""

from __future__ import annotations

import datetime as dt
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy.orm import Session

from jobs.database_clock import utcnow
from jobs.models import Job, Pause
from jobs.statements.jobs import IS_IN_PROGRESS

_CURRENT: sa.Select[int] = sa.select(sa.literal_column("1")).where(Pause.resumed_at.is_(None))
#: Whether the queue is not paused.
IS_NOT_PAUSED = ~sa.exists(_CURRENT)
#: The same for what must not overlap with the begin of a pause. In PostgreSQL, where statements see what was
#: committed when they began, it locks the table until the transaction ends, in a mode that only `wait_for_claims`
#: waits for. It takes the lock before it looks. SQLite has one writer, and needs no lock.
IS_NOT_PAUSED_LOCKED = ~sa.exists(_CURRENT.with_for_update(read=True, key_share=True))


class LastPause(NamedTuple):
    """What jobs and requests that wait need to know of the last pause."""

    paused_at: dt.datetime
    note: str | None
    #: None while it lasts.
    resumed_at: dt.datetime | None


_NEWEST = (
    sa.select(Pause.paused_at, Pause.note, Pause.resumed_at).order_by(Pause.id.desc()).limit(1)
)
_LAST = _NEWEST.subquery()


#: Seconds that a claim may take. One that takes longer hangs.
CLAIM_TIMEOUT = 5


def is_paused(connection: sa.Connection) -> bool:
    """Return whether the queue is paused."""
    return not connection.scalar(sa.select(IS_NOT_PAUSED))


def paused_at(connection: sa.Connection) -> dt.datetime | None:
    """Return since when the queue is paused; None if it is not."""
    return connection.scalar(sa.select(Pause.paused_at).where(Pause.resumed_at.is_(None)).limit(1))


def last(connection: sa.Connection) -> LastPause | None:
    """Return the last pause: the current one if the queue is paused; None if it never was."""
    row = connection.execute(_NEWEST).one_or_none()
    return None if row is None else LastPause(*row)


def newest(session: Session, limit: int) -> list[Pause]:
    """Return the last pauses, the newest first. Only the first of them may not have ended."""
    return list(session.scalars(sa.select(Pause).order_by(Pause.id.desc()).limit(limit)))


def lock(session: Session) -> None:
    """Let no other transaction pause or resume the queue until this one ends. Claims go on."""
    if session.connection().dialect.name == "postgresql":
        session.execute(sa.text("LOCK TABLE pauses IN SHARE ROW EXCLUSIVE MODE"))


def wait_for_claims(connection: sa.Connection) -> None:
    """Return once all claims have ended that may not see a pause which was committed before.

    Raises:
        sqlalchemy.exc.OperationalError: one has not ended within `CLAIM_TIMEOUT` seconds.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(sa.text(f"SET LOCAL lock_timeout = '{CLAIM_TIMEOUT}s'"))
        connection.execute(sa.text("LOCK TABLE pauses IN EXCLUSIVE MODE"))


def extend_deadlines(connection: sa.Connection, pause: Pause, until: dt.datetime) -> None:
    """Add the time that jobs have waited during a pause to their deadlines.

    Args:
        connection: in the transaction that ends the pause.
        pause: which ends.
        until: when it ends.
    """
    waiting = connection.execute(
        sa.select(Job.id, Job.ready_at, Job.deadline_at).where(
            IS_IN_PROGRESS, Job.worker_id.is_(None), Job.deadline_at.is_not(None)
        )
    ).all()
    if waiting:
        connection.execute(
            sa.update(Job)
            .where(Job.id == sa.bindparam("job"), Job.worker_id.is_(None))
            .values(deadline_at=sa.bindparam("deadline")),
            [
                {
                    "job": row.id,
                    "deadline": row.deadline_at + _since(max(row.ready_at, pause.paused_at), until),
                }
                for row in waiting
            ],
        )


def _since(start: dt.datetime, end: dt.datetime) -> dt.timedelta:
    """Return the time from one moment to another; none if the clock was set back between them."""
    return max(end - start, dt.timedelta())


def ago(connection: sa.Connection, seconds: float) -> dt.datetime:
    """Return the time since which the queue has not been paused for some seconds in all. It is not paused now."""
    moment, paused_at, resumed_at = connection.execute(
        sa.select(utcnow(-seconds), _LAST.c.paused_at, _LAST.c.resumed_at).select_from(
            sa.select(sa.literal(1)).subquery().outerjoin(_LAST, sa.true())
        )
    ).one()
    if resumed_at is not None and resumed_at > moment:
        moment -= _since(paused_at, resumed_at)
    found: dt.datetime = moment
    return found
