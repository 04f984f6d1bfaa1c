"""Batches: accepting them, working through their lines, and ending them.

A process works on a batch in steps, each of them one transaction that first takes the batch
(`statements.batches.take`): it locks the batch's row, and keeps other processes away for the time of a
lease. The lease only saves them the work. What makes a step count once is that its changes and the progress
that they stand for commit together: a piece of the input is validated if the batch was validated up to
where the piece begins, a line is submitted with its job, and an answer is written when its line goes.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from jobs.column_types import utcnow
from jobs.database import Database
from jobs.errors import IdempotencyError, NoSuchFileError, TooManyBatchesError
from jobs.models import Batch, BatchStatus, File, FilePurpose, FileState, Job
from jobs.pipeline import DEFAULT_PRIORITY
from jobs.statements import batches, deliveries, files
from jobs.statements.batches import Submitted
from jobs.transient import retry_on_conflict
from jobs.use_cases.files import CHUNK, SECONDS_PER_DAY
from jobs.use_cases.files import new_id as new_file_id
from jobs.use_cases.submission import NewJob, build_job

#: Seconds in which a batch must be answered: 24 hours.
COMPLETION_WINDOW = 86_400.0
#: Batches of an owner that have not ended. The processes that work on batches look at all that are open.
MAX_OPEN_OF_OWNER = 100
#: Seconds that a line is queued until it has the priority of a single question.
PATIENCE = 60.0
#: Of a failed validation; it ends when there are so many.
MAX_ERRORS = 100

#: The status in which a batch ends, given the one in which its last line was answered or given up.
_ENDS = {
    BatchStatus.IN_PROGRESS: BatchStatus.COMPLETED,
    BatchStatus.CANCELLING: BatchStatus.CANCELLED,
    BatchStatus.FINALIZING: BatchStatus.EXPIRED,
}


@dataclass(frozen=True)
class NewBatch:
    """A file of requests to answer."""

    input_file_id: str
    endpoint: str
    #: What of a chat's messages is asked where a line does not say so.
    chat_context: str
    metadata: dict[str, str]
    output_expires_after: int | None
    #: The client's, and the SHA-256 of the request that came with it.
    idempotency_key: str | None = None
    request_digest: str | None = None


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


@dataclass(frozen=True)
class ValidatedLine:
    """A line of an input file that has a custom id."""

    number: int
    custom_id: str
    start: int
    length: int


@dataclass(frozen=True)
class Piece:
    """Some consecutive lines of an input file, validated."""

    #: Where the piece begins and ends, in bytes.
    start: int
    end: int
    #: The number of its last line.
    last_line: int
    lines: list[ValidatedLine]
    #: ``code``, ``line``, ``message`` and ``param`` each.
    errors: list[dict[str, Any]]
    #: Whether it is the last piece that needs to be validated.
    last: bool


@dataclass(frozen=True)
class LineResult:
    """What the output or the error file says about a line."""

    number: int
    #: One line of JSON, with its newline.
    text: bytes
    failed: bool
    input_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0


@dataclass(frozen=True)
class Submission:
    """The next lines of a batch: most of them become jobs, and others errors."""

    #: The number of the last line before them, and of the last of them.
    after: int
    last_line: int
    jobs: dict[int, NewJob] = field(default_factory=dict)


def new_id() -> str:
    """Return a new batch id. Ids sort by age."""
    return f"batch_{time.time_ns() // 1_000_000:012x}{secrets.token_hex(10)}"


@retry_on_conflict
def create(database: Database, owner: str, new: NewBatch, key_id: str | None = None) -> Batch:
    """Accept a batch; its lines are validated later.

    Args:
        database: of the batches.
        owner: of the batch.
        new: the batch.
        key_id: of the API key that the batch is created with, if any.

    Returns:
        the batch, or the one that an earlier request with its idempotency key created.

    Raises:
        NoSuchFileError: the owner has no such input file.
        TooManyBatchesError: `MAX_OPEN_OF_OWNER` batches of the owner have not ended.
        IdempotencyError: the idempotency key was used for a different request.
    """
    batch_id = new_id()
    try:
        with database.write_session() as session:
            if new.idempotency_key is not None:
                existing = batches.find_by_idempotency_key(session, owner, new.idempotency_key)
                if existing is not None:
                    return _same_request(existing, new)
            file = files.get(session, owner, new.input_file_id)
            if file.purpose is not FilePurpose.BATCH:
                raise NoSuchFileError(new.input_file_id)
            if batches.count_open(session, owner) >= MAX_OPEN_OF_OWNER:
                raise TooManyBatchesError(MAX_OPEN_OF_OWNER)
            batch = Batch(
                id=batch_id,
                owner=owner,
                key_id=key_id,
                endpoint=new.endpoint,
                chat_context=new.chat_context,
                metadata_=new.metadata,
                idempotency_key=new.idempotency_key,
                request_digest=new.request_digest,
                input_file_id=new.input_file_id,
                output_expires_after=new.output_expires_after,
                expires_at=utcnow(COMPLETION_WINDOW),
            )
            session.add(batch)
            session.flush()
            session.refresh(batch)
            return batch
    except sa.exc.IntegrityError:
        # PostgreSQL: another transaction committed the same key after this one had looked for it.
        with database.read_session() as session:
            existing = batches.find_by_idempotency_key(session, owner, new.idempotency_key or "")
        if existing is None:
            raise
        return _same_request(existing, new)


def _same_request(existing: Batch, new: NewBatch) -> Batch:
    if existing.request_digest != new.request_digest:
        raise IdempotencyError
    return existing


def get_batch(database: Database, owner: str | None, batch_id: str) -> Batch:
    """Return an owner's batch (None: any owner's).

    Raises:
        NoSuchBatchError: the owner has no such batch.
    """
    with database.read_session() as session:
        return batches.get(session, owner, batch_id)


def list_batches(
    database: Database, owner: str, *, limit: int, after: str | None = None
) -> tuple[list[Batch], bool]:
    """Return a page of an owner's batches, newest first, and whether more follow.

    Raises:
        NoSuchBatchError: the owner has no batch with the id ``after``.
    """
    with database.read_session() as session:
        page = batches.list_page(session, owner, limit=limit + 1, after=after)
    return page[:limit], len(page) > limit


@retry_on_conflict
def cancel_batch(database: Database, owner: str | None, batch_id: str) -> tuple[Batch, list[str]]:
    """Begin to cancel a batch, unless it is about to end; return it, and the jobs that ended with it.

    Its jobs have ended at once, as with `cancellation.cancel`. Its lines without an answer become errors
    later, and then the batch is cancelled.

    Raises:
        NoSuchBatchError: the owner has no such batch.
    """
    batches.check_id(batch_id)
    with database.write_session() as session:
        connection = session.connection()
        cancelled: list[str] = []
        if batches.cancel(connection, owner, batch_id):
            cancelled = batches.cancel_jobs(connection, batch_id)
        return batches.get(session, owner, batch_id), cancelled


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
        query = sa.select(File.size).where(File.id == batch.input_file_id)
        return connection.scalar(query) or 0


@retry_on_conflict
def record_piece(
    database: Database, batch_id: str, runner: str, piece: Piece
) -> BatchStatus | None:
    """Record a validated piece of a batch's input. After the last one, the batch is in progress or failed.

    Returns:
        the batch's status; None if nothing was recorded, because it was cancelled or another process has
        validated the same piece.
    """
    with database.write() as connection:
        batch = batches.take(connection, batch_id, runner)
        if (
            batch is None
            or batch.status is not BatchStatus.VALIDATING
            or batch.validated_bytes != piece.start
        ):
            return None
        lines, duplicates = _distinct(connection, batch_id, piece.lines)
        batches.add_lines(
            connection,
            [
                {
                    "batch_id": batch_id,
                    "number": line.number,
                    "custom_id": line.custom_id,
                    "start": line.start,
                    "length": line.length,
                }
                for line in lines
            ],
        )
        errors = [*batch.errors, *sorted([*piece.errors, *duplicates], key=_line_number)]
        total = batch.total + len(lines)
        last = piece.last or len(errors) >= MAX_ERRORS
        if last and not total and not errors:
            errors = [_error("empty_file", None, "The input file has no requests.")]
        if last and errors:
            batches.remove_lines(connection, batch_id)
            _end(connection, batch, BatchStatus.FAILED, errors=errors[:MAX_ERRORS], total=0)
            return BatchStatus.FAILED
        values: dict[str, Any] = {
            "validated_bytes": piece.end,
            "validated_lines": piece.last_line,
            "errors": errors,
            "total": total,
        }
        if last:
            values |= _begin(connection, batch)
        batches.update(connection, batch_id, **values)
        return BatchStatus.IN_PROGRESS if last else BatchStatus.VALIDATING


def _begin(connection: sa.Connection, batch: sa.Row[*tuple[Any, ...]]) -> dict[str, Any]:
    """Make the files of a batch that is valid; return the columns that change."""
    ids = {}
    for column, kind in (("output_file_id", "output"), ("error_file_id", "error")):
        ids[column] = new_file_id()
        files.add(
            connection,
            ids[column],
            batch.owner,
            f"{batch.id}_{kind}.jsonl",
            FilePurpose.BATCH_OUTPUT,
            FileState.WRITING,
        )
    return {**ids, "status": BatchStatus.IN_PROGRESS, "in_progress_at": utcnow()}


def _distinct(
    connection: sa.Connection, batch_id: str, lines: Sequence[ValidatedLine]
) -> tuple[list[ValidatedLine], list[dict[str, Any]]]:
    """Return the lines whose custom ids are new, and errors for the others."""
    known = batches.known_custom_ids(connection, batch_id, [line.custom_id for line in lines])
    distinct, errors = [], []
    for line in lines:
        if line.custom_id in known:
            message = f"Another line has the same `custom_id`: {line.custom_id!r}."
            errors.append(_error("duplicate_custom_id", line.number, message, "custom_id"))
        else:
            known.add(line.custom_id)
            distinct.append(line)
    return distinct, errors


def _error(code: str, line: int | None, message: str, param: str | None = None) -> dict[str, Any]:
    return {"code": code, "line": line, "message": message, "param": param}


def _line_number(error: dict[str, Any]) -> int:
    number: int = error["line"] or 0
    return number


def pending_lines(
    database: Database, batch: sa.Row[*tuple[Any, ...]], limit: int
) -> Sequence[sa.Row[int, str, int, int]]:
    """Return number, custom id, start and length of the next lines of a batch."""
    with database.read() as connection:
        return batches.pending(connection, batch.id, batch.submitted_line, limit)


def ended_lines(
    database: Database, batch_id: str, *, limit: int
) -> list[tuple[int, str, str, Job | None]]:
    """Return number, custom id, job id and job of lines whose jobs have ended; None for deleted jobs."""
    with database.read_session() as session:
        return batches.ended_lines(session, batch_id, limit)


@retry_on_conflict
def record_lines(
    database: Database,
    batch_id: str,
    runner: str,
    results: Sequence[LineResult],
    submission: Submission | None = None,
) -> list[Job] | None:
    """Write answers and errors of lines, and submit the next lines; end the batch after its last line.

    Args:
        database: of the batch.
        batch_id: of the batch.
        runner: the process that works on it.
        results: of lines. Those that are written already are not written again.
        submission: the next lines of the batch.

    Returns:
        the new jobs, which count as published; None if nothing was recorded, because another process was
        faster or the batch was cancelled meanwhile.
    """
    with database.write_session() as session:
        connection = session.connection()
        batch = batches.take(connection, batch_id, runner)
        if batch is None:
            return None
        values: dict[str, Any] = {}
        jobs: list[Job] = []
        if submission is not None:
            submits = bool(submission.jobs)
            if batch.submitted_line != submission.after or (
                submits and batch.status is not BatchStatus.IN_PROGRESS
            ):
                return None
            values["submitted_line"] = submission.last_line
            by_line = {
                line: build_job(batch.owner, new, batch.key_id)
                for line, new in submission.jobs.items()
            }
            jobs = list(by_line.values())
            session.add_all(jobs)
            batches.set_jobs(connection, batch_id, {line: job.id for line, job in by_line.items()})
        values |= _write(connection, batch, results)
        if values:
            batches.update(connection, batch_id, **values)
        answered = values.get("completed", batch.completed) + values.get("failed", batch.failed)
        if answered == batch.total and batch.status in _ENDS:
            _end(connection, batch, _ENDS[batch.status], **values)
    return jobs


def _write(
    connection: sa.Connection, batch: sa.Row[*tuple[Any, ...]], results: Sequence[LineResult]
) -> dict[str, Any]:
    """Append results to a batch's files, and remove their lines; return the columns that change."""
    if not results:
        return {}
    open_lines = batches.remove_lines(connection, batch.id, [result.number for result in results])
    fresh = [result for result in results if result.number in open_lines]
    completed = [result for result in fresh if not result.failed]
    failed = [result for result in fresh if result.failed]
    for file_id, written in ((batch.output_file_id, completed), (batch.error_file_id, failed)):
        text = b"".join(result.text for result in written)
        for start in range(0, len(text), CHUNK):
            # False if the file is gone: there is nobody to read it.
            files.append(connection, file_id, FileState.WRITING, text[start : start + CHUNK])
    return {
        "completed": batch.completed + len(completed),
        "failed": batch.failed + len(failed),
        "input_tokens": batch.input_tokens + sum(r.input_tokens for r in completed),
        "output_tokens": batch.output_tokens + sum(r.output_tokens for r in completed),
        "reasoning_tokens": batch.reasoning_tokens + sum(r.reasoning_tokens for r in completed),
    }


@retry_on_conflict
def raise_waiting_lines(database: Database) -> int:
    """Let lines that have waited long take their turn among single questions; return how many.

    While there are always single questions, lines would otherwise never be asked. A sweep publishes them
    again; the messages that they have find nothing to claim.
    """
    with (
        database.read() as connection
    ):  # As a rule there is nothing to do, which should lock nothing.
        if not batches.any_waiting(connection, PATIENCE):
            return 0
    with database.write() as connection:
        return batches.raise_priority(connection, PATIENCE, DEFAULT_PRIORITY)


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
        _end(connection, batch, status, total=0)
        return status


def _end(
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
    deliveries.add_event(connection, batch.owner, f"batch.{status}", batch.id)


def delete_batches(database: Database, days: int, *, limit: int = 100) -> int:
    """Delete batches that ended more than ``days`` days ago; return how many were deleted.

    Their files are deleted by `files.sweep_files`.
    """
    with database.write() as connection:
        return batches.delete_ended(connection, days * SECONDS_PER_DAY, limit=limit)
