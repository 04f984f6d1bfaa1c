"""Pausing and resuming the queue: while it is paused, no worker claims a stage.

Running stages finish, and questions are accepted. Every pause is kept.
"""

from __future__ import annotations

import logging

import sqlalchemy as sa

from jobs import transient
from jobs.database import Database
from jobs.models import Pause
from jobs.statements import clock, pauses
from jobs.statements.pauses import LastPause

__all__ = ["LastPause", "current", "is_paused", "pause", "resume"]

log = logging.getLogger(__name__)


def pause(database: Database, paused_by: str, note: str | None) -> tuple[Pause, bool]:
    """Pause the queue, unless it is paused. Once this returns, no worker claims a stage until it is resumed.

    Args:
        database: of the queue.
        paused_by: who asks for it.
        note: what the users are told, if anything.

    Returns:
        the pause that lasts, and whether it is new.
    """
    with database.write_session() as session:
        pauses.lock(session)
        current = next(iter(pauses.newest(session, 1)), None)
        is_new = current is None or current.resumed_at is not None
        if current is None or is_new:
            current = Pause(paused_by=paused_by, note=note)
            session.add(current)
            session.flush()
            session.refresh(current)
    # Those that began before the commit may not see it.
    try:
        with database.write() as connection:
            pauses.wait_for_claims(connection)
    except sa.exc.OperationalError as error:
        log.warning("paused; a claim that began before has not ended: %s", transient.reason(error))
    return current, is_new


def resume(database: Database, resumed_by: str) -> tuple[Pause | None, bool]:
    """Resume the queue, if it is paused. The time that jobs waited during the pause is added to their deadlines.

    Args:
        database: of the queue.
        resumed_by: who asks for it.

    Returns:
        the last pause, None if there never was one; and whether it has ended now.
    """
    with database.write_session() as session:
        pauses.lock(session)
        current = next(iter(pauses.newest(session, 1)), None)
        if current is None or current.resumed_at is not None:
            return current, False
        connection = session.connection()
        current.resumed_at, current.resumed_by = clock.now(connection), resumed_by
        pauses.extend_deadlines(connection, current, current.resumed_at)
        session.flush()
        return current, True


def is_paused(database: Database) -> bool:
    """Return whether the queue is paused."""
    return database.query(pauses.is_paused)


def current(database: Database) -> LastPause | None:
    """Return the current pause; None if the queue is not paused."""
    last = database.query(pauses.last)
    return None if last is None or last.resumed_at is not None else last
