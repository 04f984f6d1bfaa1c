"""Statements on the checkpoints of the transparency log, their cosignatures, and the witnesses that give them."""

from __future__ import annotations

from collections.abc import Collection

import sqlalchemy as sa

from jobs.database_clock import utcnow, utcnow_once
from jobs.models import LogCheckpoint, LogCosignature, LogWitness
from jobs.statements.inserting import insert
from jobs.timing import FUTURE_MARGIN

_CHECKPOINT = (
    sa.select(LogCheckpoint.size, LogCheckpoint.note).order_by(LogCheckpoint.size.desc()).limit(1)
)
#: Cosignatures that are kept of a witness, and that are looked at for a checkpoint with many.
MAX_COSIGNATURES = 100


def add_checkpoint(connection: sa.Connection, size: int, note: str) -> None:
    """Add the newest checkpoint."""
    connection.execute(sa.insert(LogCheckpoint).values(size=size, note=note))


def forget_checkpoints(connection: sa.Connection) -> None:
    """Delete all checkpoints, their cosignatures, and what is known of witnesses."""
    for table in (LogCosignature, LogWitness, LogCheckpoint):
        connection.execute(sa.delete(table))


def newest_checkpoint(connection: sa.Connection) -> sa.Row[int, str] | None:
    """Return size and note of the newest checkpoint, without cosignatures."""
    return connection.execute(_CHECKPOINT).one_or_none()


def get_checkpoint(
    connection: sa.Connection, size: int = 0, max_age: float | None = None
) -> str | None:
    """Return the checkpoint with the most cosignatures, and of several the newest; with its cosignatures.

    Args:
        connection: in any transaction.
        size: the minimum number of entries.
        max_age: in seconds; the newest checkpoint is returned instead of one that is older than it by more. None for no
            limit.
    """
    newest = newest_checkpoint(connection)
    if newest is None:
        return None
    recent = (
        sa.select(LogCosignature.size)
        .where(LogCosignature.size >= size)
        .order_by(LogCosignature.size.desc())
        .limit(MAX_COSIGNATURES)
        .subquery()
    )
    query = (
        sa.select(LogCheckpoint.size, LogCheckpoint.note)
        .join(recent, recent.c.size == LogCheckpoint.size)
        .group_by(LogCheckpoint.size, LogCheckpoint.note)
        .order_by(sa.func.count().desc(), LogCheckpoint.size.desc())
        .limit(1)
    )
    if max_age is not None:
        query = query.where(LogCheckpoint.created_at > utcnow_once(-max_age))
    chosen = connection.execute(query).one_or_none() or newest
    lines = sa.select(LogCosignature.line).where(LogCosignature.size == chosen.size)
    return "".join([chosen.note, *connection.scalars(lines.order_by(LogCosignature.witness))])


def list_cosignatures(
    connection: sa.Connection, witnesses: Collection[str]
) -> list[sa.Row[int, str, str]]:
    """Return size, witness and line of all cosignatures of some witnesses."""
    query = sa.select(LogCosignature.size, LogCosignature.witness, LogCosignature.line)
    return list(connection.execute(query.where(LogCosignature.witness.in_(witnesses))))


def is_cosigned(connection: sa.Connection, size: int, witness: str) -> bool:
    """Return whether a witness has cosigned the checkpoint of a size."""
    query = sa.select(LogCosignature.size).where(
        LogCosignature.size == size, LogCosignature.witness == witness
    )
    return connection.scalar(query) is not None


def add_witness(connection: sa.Connection, witness: str) -> None:
    """Add a witness, unless it is there."""
    new = insert(connection, LogWitness).values(
        witness=witness, size=0, failures=0, next_at=utcnow()
    )
    connection.execute(new.on_conflict_do_nothing())


def take_witness(
    connection: sa.Connection, witness: str, seconds: float, longest: float
) -> sa.Row[int, int] | None:
    """Take a witness for some seconds; return its size and failures, or None if it must not be asked now.

    Nobody waits longer than ``longest`` seconds: the clock was set back.
    """
    next_at = LogWitness.next_at
    is_due = sa.or_(next_at <= utcnow_once(), next_at > utcnow_once(longest + FUTURE_MARGIN))
    taken = connection.execute(
        sa.update(LogWitness)
        .where(LogWitness.witness == witness, is_due)
        .values(next_at=utcnow(seconds))
        .returning(LogWitness.size, LogWitness.failures)
    )
    return taken.one_or_none()


def set_witness(connection: sa.Connection, witness: str, *, seconds: float, **columns: int) -> None:
    """Set what is known of a witness, and let others ask it after some seconds."""
    statement = sa.update(LogWitness).where(LogWitness.witness == witness)
    connection.execute(statement.values(next_at=utcnow(seconds), **columns))


def add_cosignature(connection: sa.Connection, size: int, witness: str, line: str) -> None:
    """Add a cosignature, and delete those of the witness that are no longer kept."""
    own = LogCosignature.witness == witness
    connection.execute(sa.delete(LogCosignature).where(own, LogCosignature.size == size))
    connection.execute(sa.insert(LogCosignature).values(size=size, witness=witness, line=line))
    last = (
        sa.select(LogCosignature.size)
        .where(own)
        .order_by(LogCosignature.size.desc())
        .limit(1)
        .offset(MAX_COSIGNATURES)
    )
    connection.execute(
        sa.delete(LogCosignature).where(own, LogCosignature.size <= last.scalar_subquery())
    )


def list_checkpoints(connection: sa.Connection, after: int, limit: int) -> list[sa.Row[int, str]]:
    """Return size and note of checkpoints of more than ``after`` entries, the smallest first."""
    query = sa.select(LogCheckpoint.size, LogCheckpoint.note).where(LogCheckpoint.size > after)
    return list(connection.execute(query.order_by(LogCheckpoint.size).limit(limit)))
