"""Statements on the receivers of traces."""

from __future__ import annotations

import sqlalchemy as sa

from jobs.database_clock import utcnow, utcnow_once
from jobs.models import TraceReceiver
from jobs.statements.inserting import insert
from jobs.timing import FUTURE_MARGIN


def find_place(connection: sa.Connection, receiver: str) -> int | None:
    """Return the first entry of the log whose job or review a receiver does not have; None for a new receiver."""
    query = sa.select(TraceReceiver.next_index).where(TraceReceiver.receiver == receiver)
    return connection.scalar(query)


def add(connection: sa.Connection, receiver: str, place: int) -> None:
    """Add a receiver, unless it is there."""
    columns = {"receiver": receiver, "next_index": place, "failures": 0, "next_at": utcnow()}
    connection.execute(insert(connection, TraceReceiver).values(**columns).on_conflict_do_nothing())


def take(
    connection: sa.Connection, receiver: str, seconds: float, longest: float
) -> sa.Row[int, int] | None:
    """Take a receiver for some seconds; return its place and failures, or None if nothing must be sent now.

    Nobody waits longer than ``longest`` seconds: the clock was set back.
    """
    next_at = TraceReceiver.next_at
    is_due = sa.or_(next_at <= utcnow_once(), next_at > utcnow_once(longest + FUTURE_MARGIN))
    statement = (
        sa.update(TraceReceiver)
        .where(TraceReceiver.receiver == receiver, is_due)
        .values(next_at=utcnow(seconds))
        .returning(TraceReceiver.next_index, TraceReceiver.failures)
    )
    return connection.execute(statement).one_or_none()


def update(connection: sa.Connection, receiver: str, seconds: float, **columns: int) -> None:
    """Set columns of a receiver, and let others send after some seconds."""
    statement = sa.update(TraceReceiver).where(TraceReceiver.receiver == receiver)
    connection.execute(statement.values(next_at=utcnow(seconds), **columns))
