"""Pausing and resuming the queue: while it is paused, no worker claims a stage.

Running stages finish, and questions are accepted. Every pause is kept.
"""

from __future__ import annotations

import logging

import sqlalchemy as sa
from sqlalchemy.orm import Session

from jobs import transient
from jobs.database import Database
from jobs.models import Pause
from jobs.statements import clock, pauses, requests
from jobs.statements.pauses import LastPause
from jobs.statements.requests import Keyed

__all__ = ["LastPause", "current", "is_paused", "pause", "resume"]

log = logging.getLogger(__name__)


def pause(
    database: Database, paused_by: str, note: str | None, keyed: Keyed | None = None
) -> tuple[Pause, bool]:
    """Pause the queue, unless it is paused. Once this returns, no worker claims a stage until it is resumed.

    Args:
        database: of the queue.
        paused_by: who asks for it.
        note: what the users are told, if anything.
        keyed: the request, if it has an idempotency key.

    Returns:
        the pause that lasts, and whether this began it; of a request that was done before, what it was then.

    Raises:
        IdempotencyError: the key was used for a different request.
    """
    with database.write_session() as session:
        pauses.lock(session)
        if (found := _done_before(session, keyed)) is not None:
            last, is_new = found
        else:
            last = next(iter(pauses.newest(session, 1)), None)
            is_new = last is None or last.resumed_at is not None
            if is_new:
                last = Pause(paused_by=paused_by, note=note)
                session.add(last)
                session.flush()
                session.refresh(last)
        assert last is not None  # noqa: S101 (pauses are not deleted)
        requests.end(session.connection(), keyed, pause=last.id, changed=is_new)
    # Those that began before the commit may not see it.
    try:
        try:
            _wait_for_claims(database)
        except sa.exc.OperationalError as error:
            if not error.connection_invalidated:
                raise
            _wait_for_claims(database)
    except sa.exc.OperationalError as error:
        log.warning("paused; a claim that began before has not ended: %s", transient.reason(error))
    return last, is_new


def _wait_for_claims(database: Database) -> None:
    with database.write() as connection:
        pauses.wait_for_claims(connection)


def resume(
    database: Database, resumed_by: str, keyed: Keyed | None = None
) -> tuple[Pause | None, bool]:
    """Resume the queue, if it is paused. The time that jobs waited during the pause is added to their deadlines.

    Args:
        database: of the queue.
        resumed_by: who asks for it.
        keyed: the request, if it has an idempotency key.

    Returns:
        the last pause, None if there never was one, and whether this ended it; of a request that was done before,
        what it was then.

    Raises:
        IdempotencyError: the key was used for a different request.
    """
    with database.write_session() as session:
        pauses.lock(session)
        if (found := _done_before(session, keyed)) is not None:
            return found
        last = next(iter(pauses.newest(session, 1)), None)
        connection = session.connection()
        lasts = last is not None and last.resumed_at is None
        if last is not None and lasts:
            last.resumed_at, last.resumed_by = clock.now(connection), resumed_by
            pauses.extend_deadlines(connection, last, last.resumed_at)
            session.flush()
        requests.end(connection, keyed, pause=None if last is None else last.id, changed=lasts)
        return last, lasts


def _done_before(session: Session, keyed: Keyed | None) -> tuple[Pause | None, bool] | None:
    """Return the pause that a request was about, and whether it changed it; None if it was not done before."""
    outcome = requests.begin(session.connection(), keyed)
    if outcome is None:
        return None
    last = None if outcome["pause"] is None else session.get(Pause, outcome["pause"])
    return last, outcome["changed"]


def is_paused(database: Database) -> bool:
    """Return whether the queue is paused."""
    return database.query(pauses.is_paused)


def current(database: Database) -> LastPause | None:
    """Return the current pause; None if the queue is not paused."""
    last = database.query(pauses.last)
    return None if last is None or last.resumed_at is not None else last
