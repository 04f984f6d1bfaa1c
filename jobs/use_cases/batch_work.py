"""Working on batches: what there is to do, taking a batch, and ending it.

A process works on a batch in steps, each of them one transaction that first takes the batch
(`statements.batches.take`): it locks the batch's row, and keeps other processes away for the time of a
lease. The lease only saves them the work. What makes a step count once is that its changes and the progress
that they stand for commit together: a piece of the input is validated (`batch_validation`) if the batch was
validated up to where the piece begins, a line is submitted with its job, and an answer is written when its line
goes (`batch_answers`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from jobs.database import Database
from jobs.database_clock import utcnow
from jobs.models import BatchStatus
from jobs.statements import batches, deliveries, files
from jobs.statements.batches import Submitted
from jobs.transient import retry_on_conflict


@dataclass(frozen=True)
class Work:
    """What there is to do for a batch."""

    batch_id: str
    owner: str
    status: BatchStatus
    #: Whether its completion window is over.
    expired: bool
    #: Whether another process works on it.
    taken: bool
    #: Lines that are neither submitted nor given up.
    pending: int
    #: Lines whose jobs are queued, are running, and have ended or were deleted.
    queued: int
    running: int
    ended: int


def find_work(database: Database, runner: str) -> list[Work]:
    """Return what there is to do for the batches that have not ended, the oldest first.

    Args:
        database: of the batches.
        runner: the process that asks.
    """
    with database.read() as connection:
        rows = batches.find_open(connection, runner)
        if not rows:
            return []
        counts = batches.count_submitted(connection)
    work = []
    for row in rows:
        count = counts.get(row.id, Submitted(0, 0, 0))
        work.append(
            Work(
                batch_id=row.id,
                owner=row.owner,
                status=row.status,
                expired=bool(row.expired),
                taken=bool(row.taken),
                pending=row.total - row.completed - row.failed - sum(count),
                queued=count.queued,
                running=count.running,
                ended=count.ended,
            )
        )
    return work


def take_batch(database: Database, batch_id: str, runner: str) -> sa.Row[*tuple[Any, ...]] | None:
    """Take a batch for a process, and keep it for the time of a lease.

    Returns:
        its row; None if it has ended or another process has it.
    """
    with database.write() as connection:
        return batches.take(connection, batch_id, runner)


def input_size(database: Database, batch: sa.Row[*tuple[Any, ...]]) -> int:
    """Return the number of bytes of a batch's input; 0 if its file is gone."""
    with database.read() as connection:
        return files.size(connection, batch.input_file_id)


@retry_on_conflict
def expire_batch(database: Database, batch_id: str, runner: str) -> list[str] | None:
    """Begin to end a batch whose completion window is over; return the jobs that ended with it.

    Returns:
        None if there was nothing to do.
    """
    with database.write() as connection:
        batch = batches.take(connection, batch_id, runner)
        if batch is None or batch.status is not BatchStatus.IN_PROGRESS:
            return None
        values = {"status": BatchStatus.FINALIZING, "finalizing_at": utcnow()}
        batches.update(connection, batch_id, **values)
        return batches.cancel_jobs(connection, batch_id)


@retry_on_conflict
def end_unstarted(database: Database, batch_id: str, runner: str) -> BatchStatus | None:
    """End a batch that was cancelled, or whose completion window is over, while it was validated.

    Returns:
        its status; None if there was nothing to do.
    """
    with database.write() as connection:
        batch = batches.take(connection, batch_id, runner)
        if batch is None or batch.in_progress_at is not None:
            return None
        cancelled = batch.status is BatchStatus.CANCELLING
        status = BatchStatus.CANCELLED if cancelled else BatchStatus.EXPIRED
        batches.remove_lines(connection, batch_id)
        end(connection, batch, status, total=0)
        return status


def end(
    connection: sa.Connection,
    batch: sa.Row[*tuple[Any, ...]],
    status: BatchStatus,
    **columns: Any,
) -> None:
    """End a batch, in the transaction of its last change. Every batch ends here, and once.

    Args:
        connection: in that transaction, which has taken the batch.
        batch: as it was taken.
        status: failed, completed, expired or cancelled.
        columns: that changed since it was taken.
    """
    for column, count in (("output_file_id", "completed"), ("error_file_id", "failed")):
        file_id = getattr(batch, column)
        if file_id is None:
            continue
        if columns.get(count, getattr(batch, count)):
            files.finish(connection, file_id, expires_in=batch.output_expires_after)
        else:
            files.drop(connection, file_id)
            columns[column] = None
    if status is BatchStatus.COMPLETED:
        columns["finalizing_at"] = utcnow()
    batches.update(
        connection,
        batch.id,
        **columns,
        status=status,
        ended_at=utcnow(),
        runner=None,
        leased_until=None,
    )
    deliveries.add_events(connection, batch.owner, [(f"batch.{status}", batch.id)])
