"""Statements on the transparency log: its entries, tiles and keys, and what has no entry yet."""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Iterable
from typing import Any

import sqlalchemy as sa

from jobs.column_types import UTCDateTime
from jobs.database_clock import utcnow
from jobs.models import (
    Erasure,
    Job,
    LogDeletion,
    LogEntry,
    LogKey,
    LogKind,
    LogState,
    LogTile,
    Review,
)
from jobs.statements.paging import count_up_to
from jobs.tlog import tiles
from jobs.tlog.entry import parse_entry
from jobs.tlog.merkle import Nodes

#: The condition of the partial index of jobs that are not in the log yet.
IS_UNSEALED = sa.and_(
    Job.finished_at.is_not(None), Job.worker_id.is_(None), Job.log_index.is_(None)
)
#: The conditions of the same indexes of reviews and of erasures.
_REVIEW_IS_UNSEALED = Review.log_index.is_(None)
_ERASURE_IS_UNSEALED = Erasure.log_index.is_(None)
#: Not EXISTS: while a long queue waits, PostgreSQL would expect to meet such a job soon in the table itself.
_FIRST_UNSEALED = [
    sa.select(column).where(condition).order_by(column).limit(1).scalar_subquery()
    for column, condition in (
        (Job.finished_at, IS_UNSEALED),
        (Review.created_at, _REVIEW_IS_UNSEALED),
        (Erasure.id, _ERASURE_IS_UNSEALED),
    )
]
_ANY_PENDING = sa.select(
    sa.or_(
        *(first.is_not(None) for first in _FIRST_UNSEALED),
        sa.exists().select_from(LogDeletion),
    )
)
_LOCK = sa.select(LogState.origin, LogState.size, utcnow().label("now")).with_for_update()
_SEAL = (
    sa.update(Job)
    .where(
        Job.id == sa.bindparam("job"),
        # It may have been retried meanwhile, and have ended again.
        Job.finished_at == sa.bindparam("end", type_=UTCDateTime()),
        IS_UNSEALED,
    )
    .values(log_index=sa.bindparam("index"), log_salt=sa.bindparam("salt"))
)
_TILE = sa.select(LogTile.hashes).where(
    LogTile.level == sa.bindparam("tile_level"), LogTile.tile_index == sa.bindparam("index")
)
_SET_TILE = (
    sa.update(LogTile)
    .where(LogTile.level == sa.bindparam("tile_level"), LogTile.tile_index == sa.bindparam("index"))
    .values(hashes=sa.bindparam("data"))
)


def any_pending(connection: sa.Connection) -> bool:
    """Return whether anything is to be appended to the log."""
    return bool(connection.scalar(_ANY_PENDING))


def find_unsealed(connection: sa.Connection, limit: int) -> list[str]:
    """Return the ids of ended jobs without an entry, those that ended first."""
    query = sa.select(Job.id).where(IS_UNSEALED).order_by(Job.finished_at).limit(limit)
    return list(connection.scalars(query))


def find_unsealed_reviews(connection: sa.Connection, limit: int) -> list[sa.Row[str, str]]:
    """Return id and job of reviews without an entry whose jobs have one, the oldest first."""
    query = (
        sa.select(Review.id, Review.job_id)
        .join(Job, Job.id == Review.job_id)
        .where(_REVIEW_IS_UNSEALED, Job.log_index.is_not(None))
        .order_by(Review.created_at, Review.job_id, Review.number)
    )
    return list(connection.execute(query.limit(limit)))


def find_unsealed_erasures(connection: sa.Connection, limit: int) -> list[sa.Row[int, str]]:
    """Return id and job of erasures without an entry whose jobs have one, the oldest first."""
    query = (
        sa.select(Erasure.id, Erasure.job_id)
        .join(Job, Job.id == Erasure.job_id)
        .where(_ERASURE_IS_UNSEALED, Job.log_index.is_not(None))
        .order_by(Erasure.id)
    )
    return list(connection.execute(query.limit(limit)))


def seal_review(connection: sa.Connection, review_id: str, index: int) -> bool:
    """Give a review its place in the log; return False if it has one or is gone."""
    statement = sa.update(Review).where(Review.id == review_id, _REVIEW_IS_UNSEALED)
    return bool(connection.execute(statement.values(log_index=index)).rowcount)


def seal_erasure(connection: sa.Connection, erasure_id: int, index: int) -> bool:
    """Give an erasure its place in the log; return False if it has one or is gone."""
    statement = sa.update(Erasure).where(Erasure.id == erasure_id, _ERASURE_IS_UNSEALED)
    return bool(connection.execute(statement.values(log_index=index)).rowcount)


def lock(connection: sa.Connection) -> sa.Row[str | None, int, dt.datetime]:
    """Lock the log until the transaction ends; return its origin, its size and the time."""
    return connection.execute(_LOCK).one()


def state(connection: sa.Connection) -> sa.Row[str | None, int]:
    """Return the log's origin and size."""
    return connection.execute(sa.select(LogState.origin, LogState.size)).one()


def set_origin(connection: sa.Connection, origin: str) -> None:
    """Name the log."""
    connection.execute(sa.update(LogState).values(origin=origin))


def set_size(connection: sa.Connection, size: int) -> None:
    """Set the number of entries."""
    connection.execute(sa.update(LogState).values(size=size))


def keys(connection: sa.Connection) -> list[sa.Row[str, bytes | None]]:
    """Return verifier and private key of each key of the log, the oldest first."""
    query = sa.select(LogKey.verifier, LogKey.private).order_by(LogKey.id)
    return list(connection.execute(query))


def add_key(connection: sa.Connection, verifier: str, private: bytes | None) -> None:
    """Add the key that signs from now on. The private keys of older ones are deleted."""
    connection.execute(sa.update(LogKey).values(private=None))
    connection.execute(sa.insert(LogKey).values(verifier=verifier, private=private))


def seal_job(
    connection: sa.Connection, job_id: str, end: dt.datetime | None, index: int, salt: bytes | None
) -> bool:
    """Give a job that ended at ``end`` its place in the log; return False if it has one, goes on or is gone."""
    parameters = {"job": job_id, "end": end, "index": index, "salt": salt}
    return bool(connection.execute(_SEAL, parameters).rowcount)


def add_entries(connection: sa.Connection, entries: list[dict[str, Any]]) -> None:
    """Append entries: the columns of `LogEntry` each."""
    connection.execute(sa.insert(LogEntry), entries)


def note_deletions(connection: sa.Connection, deleted: Iterable[tuple[str, int]]) -> None:
    """Note that jobs were deleted, for the log to say so.

    Args:
        connection: of the transaction that deletes them.
        deleted: each job with the index of its entry, and once more for each entry of an end before a retry.
    """
    rows = [{"job_id": job_id, "entry_index": index} for job_id, index in deleted]
    if rows:
        connection.execute(sa.insert(LogDeletion), rows)


def take_deletions(connection: sa.Connection, limit: int) -> list[sa.Row[int, str]]:
    """Return index and job of deletions that the log does not have, and delete their rows."""
    query = sa.select(LogDeletion.entry_index, LogDeletion.job_id)
    rows = list(connection.execute(query.order_by(LogDeletion.entry_index).limit(limit)))
    taken = LogDeletion.entry_index.in_([row.entry_index for row in rows])
    connection.execute(sa.delete(LogDeletion).where(taken))
    return rows


def get_tile(connection: sa.Connection, level: int, index: int) -> bytes:
    """Return the hashes of a tile; nothing if there is none."""
    parameters = {"tile_level": level, "index": index}
    return connection.scalar(_TILE, parameters) or b""


def nodes(connection: sa.Connection) -> Nodes:
    """Return what reads the nodes of the tree, each tile once."""
    return tiles.nodes(lambda level, index: get_tile(connection, level, index))


def set_tile(connection: sa.Connection, level: int, index: int, hashes: bytes) -> None:
    """Add a tile, or extend one."""
    parameters = {"tile_level": level, "index": index, "data": hashes}
    if not connection.execute(_SET_TILE, parameters).rowcount:
        new = sa.insert(LogTile).values(level=level, tile_index=index, hashes=hashes)
        connection.execute(new)


def list_entries(
    connection: sa.Connection, start: int, end: int
) -> list[sa.Row[int, LogKind, str, bytes]]:
    """Return the entries from ``start`` on and before ``end``."""
    query = sa.select(LogEntry.entry_index, LogEntry.kind, LogEntry.job_id, LogEntry.entry)
    between = sa.and_(LogEntry.entry_index >= start, LogEntry.entry_index < end)
    return list(connection.execute(query.where(between).order_by(LogEntry.entry_index)))


def get_entries(connection: sa.Connection, indexes: Collection[int]) -> list[sa.Row[int, bytes]]:
    """Return indexes and entries of some places of the log."""
    query = sa.select(LogEntry.entry_index, LogEntry.entry)
    return list(connection.execute(query.where(LogEntry.entry_index.in_(indexes))))


def find_known(connection: sa.Connection, job_ids: Collection[str]) -> set[str]:
    """Return those of some jobs that have an entry, whether they are there or were deleted."""
    return set(connection.scalars(sa.select(LogEntry.job_id).where(LogEntry.job_id.in_(job_ids))))


def find_deletions(connection: sa.Connection, job_ids: Collection[str]) -> dict[str, set[Any]]:
    """Return the indexes of the entries that some jobs' deletions are of, by job."""
    pending = sa.select(LogDeletion.job_id, LogDeletion.entry_index)
    logged = sa.select(LogEntry.job_id, LogEntry.entry).where(LogEntry.kind == LogKind.DELETION)
    found: dict[str, set[Any]] = {}
    for job_id, index in connection.execute(pending.where(LogDeletion.job_id.in_(job_ids))):
        found.setdefault(job_id, set()).add(index)
    for job_id, entry in connection.execute(logged.where(LogEntry.job_id.in_(job_ids))):
        found.setdefault(job_id, set()).add(parse_entry(entry).get("entry"))
    return found


def any_beyond(connection: sa.Connection, size: int) -> bool:
    """Return whether there is an entry that a log of ``size`` entries does not have."""
    beyond = sa.or_(LogEntry.entry_index >= size, LogEntry.entry_index < 0)
    return bool(connection.scalar(sa.select(sa.exists().where(beyond))))


def find_misplaced(connection: sa.Connection) -> sa.Row[*tuple[Any, ...]] | None:
    """Return a record that claims an entry which is not its own: its kind, its id and its job's."""
    claims: tuple[tuple[Any, Any, LogKind], ...] = (
        (Job, Job.id, LogKind.JOB),
        (Review, Review.job_id, LogKind.REVIEW),
        (Erasure, Erasure.job_id, LogKind.ERASURE),
    )
    for row, job_id, kind in claims:
        query = (
            sa.select(sa.literal(kind).label("kind"), row.id, job_id.label("job_id"))
            .outerjoin(LogEntry, LogEntry.entry_index == row.log_index)
            .where(row.log_index.is_not(None))
            .where(
                sa.or_(
                    LogEntry.job_id.is_(None),
                    LogEntry.job_id != job_id,
                    LogEntry.kind != kind,
                )
            )
        )
        found = connection.execute(query.order_by(row.log_index).limit(1)).one_or_none()
        if found is not None:
            return found
    return None


def count_unsealed(connection: sa.Connection, limit: int | None = None) -> int:
    """Count the ended jobs that are not in the log yet, up to a limit; all of them by default."""
    return count_up_to(connection, limit, sa.select(Job.finished_at).where(IS_UNSEALED))


def find_passed_over(connection: sa.Connection, seconds: float) -> str | None:
    """Return a job without an entry that ended more than ``seconds`` before one that has an entry.

    Jobs get their entries in the order in which they ended, but for some seconds. Those that were imported
    ended elsewhere, and get theirs in the order of the import.
    """
    newest = sa.select(Job.finished_at).where(
        Job.log_index.is_not(None), Job.finished_at.is_not(None), Job.origin_proof.is_(None)
    )
    last = connection.scalar(newest.order_by(Job.finished_at.desc()).limit(1))
    if last is None:
        return None
    earlier = Job.finished_at < last - dt.timedelta(seconds=seconds)
    query = (
        sa.select(Job.id)
        .where(IS_UNSEALED, earlier, Job.origin_proof.is_(None))
        .order_by(Job.finished_at)
        .limit(1)
    )
    return connection.scalar(query)


def find_passed_over_review(connection: sa.Connection, seconds: float) -> sa.Row[str, str] | None:
    """Return id and job of a review without an entry that is more than ``seconds`` older than one with an entry.

    Reviews of imported jobs are left out: they may be older than the import.
    """
    sealed = (
        sa.select(Review.created_at)
        .join(Job, Job.id == Review.job_id)
        .where(Review.log_index.is_not(None), Job.origin_proof.is_(None))
    )
    last = connection.scalar(sealed.order_by(Review.created_at.desc()).limit(1))
    if last is None:
        return None
    earlier = Review.created_at < last - dt.timedelta(seconds=seconds)
    query = (
        sa.select(Review.id, Review.job_id)
        .join(Job, Job.id == Review.job_id)
        .where(_REVIEW_IS_UNSEALED, earlier, Job.log_index.is_not(None), Job.origin_proof.is_(None))
    )
    return connection.execute(query.order_by(Review.created_at).limit(1)).one_or_none()
