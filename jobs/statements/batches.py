"""Statements on batches and their lines.

A batch's row says how far it is, and who works on it: `take` locks the row for the rest of the transaction,
so that progress and what it stands for (lines, jobs, answers) change together. A line's row is there until
the line is in the output or error file.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.orm import Session

from jobs.database_clock import utcnow, utcnow_once
from jobs.errors import BatchNotFoundError
from jobs.ids import is_id
from jobs.models import OPEN, Batch, BatchLine, BatchStatus, Job, Status
from jobs.page_request import PageRequest
from jobs.statements import deliveries, endings, requests
from jobs.statements.jobs import ATTEMPTS, IS_QUEUED
from jobs.statements.owners import is_owned
from jobs.statements.paging import read_page
from jobs.statements.requests import Keyed
from jobs.timing import LEASE

#: The statuses in which a client can cancel a batch.
CANCELLABLE = (BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS)
#: The maximum number of open batches that are worked on at a time, the oldest first.
MAX_OPEN = 1000

_IS_OPEN = Batch.ended_at.is_(None)
_IS_SUBMITTED = BatchLine.job_id.is_not(None)

#: Parameters: ``runner``. Returns what `jobs.use_cases.batch_work.Work` has.
_FIND_OPEN = (
    sa.select(
        Batch.id,
        Batch.owner,
        Batch.status,
        Batch.total,
        Batch.completed,
        Batch.failed,
        (Batch.expires_at < utcnow()).label("expired"),
        sa.and_(
            Batch.leased_until.is_not(None),
            Batch.leased_until > utcnow(),
            Batch.leased_until < utcnow(2 * LEASE),
            Batch.runner != sa.bindparam("runner"),
        ).label("taken"),
    )
    .where(_IS_OPEN)
    .order_by(Batch.created_at)
    .limit(MAX_OPEN)
)

_SUBMITTED = sa.select(BatchLine.batch_id, BatchLine.number, BatchLine.job_id).where(_IS_SUBMITTED)
#: The maximum number of ids in one query.
_MAX_IDS = 1000

_TAKE = (
    sa.update(Batch)
    .where(
        Batch.id == sa.bindparam("batch"),
        _IS_OPEN,
        sa.or_(
            Batch.runner == sa.bindparam("runner_"),
            Batch.leased_until.is_(None),
            Batch.leased_until < utcnow(),
            # It was taken before the clock was set back.
            Batch.leased_until > utcnow(2 * LEASE),
        ),
    )
    .values(runner=sa.bindparam("runner_"), leased_until=utcnow(LEASE))
    .returning(Batch.__table__)
)

_PENDING = (
    sa.select(BatchLine.number, BatchLine.custom_id, BatchLine.start, BatchLine.length)
    .where(BatchLine.batch_id == sa.bindparam("batch"), BatchLine.number > sa.bindparam("after"))
    .order_by(BatchLine.number)
    .limit(sa.bindparam("limit"))
)

_SET_JOB = (
    sa.update(BatchLine)
    .where(BatchLine.batch_id == sa.bindparam("batch"), BatchLine.number == sa.bindparam("line"))
    .values(job_id=sa.bindparam("job"))
)


class Submitted(NamedTuple):
    """Numbers of a batch's submitted lines, by what their jobs do."""

    queued: int
    running: int
    #: Those whose jobs were deleted too.
    ended: int


def check_id(batch_id: str) -> None:
    """Check that a text can be a batch's id.

    Raises:
        BatchNotFoundError: it cannot.
    """
    if not is_id(batch_id, "batch_"):
        raise BatchNotFoundError(batch_id)


def get(session: Session, owner: str | None, batch_id: str) -> Batch:
    """Return an owner's batch.

    Raises:
        BatchNotFoundError: the owner has no such batch.
    """
    check_id(batch_id)
    batch = session.get(Batch, batch_id)
    if batch is None or owner not in (None, batch.owner):
        raise BatchNotFoundError(batch_id)
    return batch


def find_made(session: Session, request: Keyed | None) -> Batch | None:
    """Return the batch that the same request created; see `requests.find_made`."""
    return requests.find_made(session, request, sa.select(Batch))


def list_page(session: Session, owner: str, page: PageRequest) -> tuple[list[Batch], bool]:
    """Return a page of an owner's batches by age, and whether more follow.

    Raises:
        BatchNotFoundError: the owner has no batch with the id ``page.after``.
    """
    last = None if page.after is None else get(session, owner, page.after)
    return read_page(session, Batch, [Batch.owner == owner], page, last)


def find_open(connection: sa.Connection, runner: str) -> Sequence[sa.Row[*tuple[Any, ...]]]:
    """Return the batches that have not ended, the oldest first, and whether another process has them."""
    return connection.execute(_FIND_OPEN, {"runner": runner}).all()


def count_open(session: Session, owner: str) -> int:
    """Return the number of an owner's batches that have not ended."""
    query = sa.select(sa.func.count()).select_from(Batch).where(_IS_OPEN, Batch.owner == owner)
    return session.scalar(query) or 0


def count_submitted(connection: sa.Connection) -> dict[str, Submitted]:
    """Count the submitted lines of each batch."""
    rows = connection.execute(_SUBMITTED).all()
    statuses = dict(_of_jobs(connection, [row.job_id or "" for row in rows], Job.status))
    counts: dict[str, list[Status | None]] = {}
    for row in rows:
        counts.setdefault(row.batch_id, []).append(statuses.get(row.job_id or ""))
    return {
        batch_id: Submitted(
            queued=found.count(Status.QUEUED),
            running=found.count(Status.IN_PROGRESS),
            ended=sum(status is None or status.final for status in found),
        )
        for batch_id, found in counts.items()
    }


def _of_jobs(
    connection: sa.Connection, ids: Sequence[str], column: sa.orm.InstrumentedAttribute[Any]
) -> Iterator[tuple[str, Any]]:
    """Yield the ids of the jobs that there are, with a column of each.

    The ids are parameters and no join: without statistics of the newest lines, PostgreSQL's planner
    expects many of them, and would read the whole history.
    """
    for start in range(0, len(ids), _MAX_IDS):
        query = sa.select(Job.id, column).where(Job.id.in_(ids[start : start + _MAX_IDS]))
        yield from (tuple(row) for row in connection.execute(query))


def take(connection: sa.Connection, batch_id: str, runner: str) -> sa.Row[*tuple[Any, ...]] | None:
    """Lock an open batch, and keep it for a process for the time of a lease.

    Returns:
        its row; None if it has ended or another process has it.
    """
    parameters = {"batch": batch_id, "runner_": runner}
    return connection.execute(_TAKE, parameters).one_or_none()


def update(connection: sa.Connection, batch_id: str, **columns: Any) -> None:
    """Change a batch that was taken in the same transaction."""
    connection.execute(sa.update(Batch).where(Batch.id == batch_id).values(**columns))


def cancel(connection: sa.Connection, owner: str | None, batch_id: str) -> bool:
    """Begin to cancel an owner's batch; return whether it could still be cancelled."""
    statement = sa.update(Batch).where(
        Batch.id == batch_id, is_owned(Batch.owner, owner), Batch.status.in_(CANCELLABLE)
    )
    values = {"status": BatchStatus.CANCELLING, "cancelling_at": utcnow()}
    return bool(connection.execute(statement.values(**values)).rowcount)


def cancel_jobs(connection: sa.Connection, batch_id: str) -> list[str]:
    """End the open jobs of a batch's lines as cancelled; return their ids."""
    lines = sa.select(BatchLine.job_id).where(BatchLine.batch_id == batch_id, _IS_SUBMITTED)
    ended = connection.execute(
        sa.update(Job)
        .where(Job.id.in_(lines), Job.status.in_(OPEN))
        .values(status=Status.CANCELLED, finished_at=utcnow())
        .returning(*endings.COLUMNS)
    ).all()
    endings.follow_up(connection, ended)
    return [job.id for job in ended]


def any_waiting(connection: sa.Connection, seconds: float) -> bool:
    """Return whether `raise_priority` would find a job."""
    return bool(connection.scalar(sa.select(sa.exists().where(_has_waited(seconds)))))


def raise_priority(connection: sa.Connection, seconds: float, priority: int) -> int:
    """Give lines that have been queued for so long a priority, and publish them again; return how many."""
    statement = sa.update(Job).where(_has_waited(seconds), Job.worker_id.is_(None))
    return connection.execute(statement.values(priority=priority, published_at=None)).rowcount


def _has_waited(seconds: float) -> sa.ColumnElement[bool]:
    return sa.and_(
        IS_QUEUED,
        Job.batch_id.is_not(None),
        Job.priority == 0,
        Job.created_at < utcnow_once(-seconds),
    )


def known_custom_ids(
    connection: sa.Connection, batch_id: str, custom_ids: Collection[str]
) -> set[str]:
    """Return which of some custom ids the batch's lines so far have."""
    query = sa.select(BatchLine.custom_id).where(
        BatchLine.batch_id == batch_id, BatchLine.custom_id.in_(custom_ids)
    )
    return set(connection.scalars(query))


def add_lines(connection: sa.Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add lines."""
    if rows:
        connection.execute(sa.insert(BatchLine), rows)


def pending(
    connection: sa.Connection, batch_id: str, after: int, limit: int
) -> Sequence[sa.Row[int, str, int, int]]:
    """Return number, custom id, start and length of the lines after a line, in order."""
    parameters = {"batch": batch_id, "after": after, "limit": limit}
    return connection.execute(_PENDING, parameters).all()


def set_jobs(connection: sa.Connection, batch_id: str, jobs: Mapping[int, str]) -> None:
    """Note the jobs of lines, by their numbers."""
    if jobs:
        rows = [{"batch": batch_id, "line": line, "job": job} for line, job in jobs.items()]
        connection.execute(_SET_JOB, rows)


def ended_lines(
    session: Session, batch_id: str, limit: int
) -> list[tuple[int, str, str, Job | None]]:
    """Return lines whose jobs have ended or were deleted.

    Returns:
        the line's number, its custom id, its job's id, and the job with its attempts but for their
        prompts; None if it was deleted.
    """
    submitted = session.execute(
        sa.select(BatchLine.number, BatchLine.custom_id, BatchLine.job_id)
        .where(BatchLine.batch_id == batch_id, _IS_SUBMITTED)
        .order_by(BatchLine.number)
    ).all()
    ends = dict(
        _of_jobs(session.connection(), [row.job_id or "" for row in submitted], Job.finished_at)
    )
    # A job that was deleted has ended too.
    rows = [row for row in submitted if ends.get(row.job_id or "", True) is not None][:limit]
    query = sa.select(Job).where(Job.id.in_([row.job_id for row in rows])).options(*ATTEMPTS)
    jobs = {job.id: job for job in session.scalars(query)} if rows else {}
    return [
        (row.number, row.custom_id, row.job_id or "", jobs.get(row.job_id or "")) for row in rows
    ]


def remove_lines(
    connection: sa.Connection, batch_id: str, numbers: Collection[int] | None = None
) -> set[int]:
    """Remove lines of a batch, or all; return the numbers of those that were there."""
    statement = sa.delete(BatchLine).where(BatchLine.batch_id == batch_id)
    if numbers is None:
        connection.execute(statement)
        return set()
    statement = statement.where(BatchLine.number.in_(numbers))
    return set(connection.scalars(statement.returning(BatchLine.number)))


def delete_ended(connection: sa.Connection, seconds: float, *, limit: int) -> int:
    """Delete up to ``limit`` batches that ended more than ``seconds`` ago; return how many were deleted."""
    oldest = (
        sa.select(Batch.id)
        .where(Batch.ended_at < utcnow_once(-seconds))
        .order_by(Batch.ended_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    statement = sa.delete(Batch).where(Batch.id.in_(oldest)).returning(Batch.id)
    deleted = connection.scalars(statement).all()
    if deleted:
        deliveries.delete_of_objects(connection, deleted)
    return len(deleted)
