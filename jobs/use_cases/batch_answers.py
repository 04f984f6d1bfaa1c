"""Submitting the lines of a batch as jobs, and writing their answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from jobs.database import Database
from jobs.models import BatchStatus, FileState, Job
from jobs.pipeline import DEFAULT_PRIORITY
from jobs.statements import batches, files
from jobs.transient import retry_on_conflict
from jobs.use_cases.batch_work import end
from jobs.use_cases.files import CHUNK
from jobs.use_cases.submission import NewJob, build_job

#: Seconds that a line is queued until it has the priority of a single question.
PATIENCE = 60.0

#: The status in which a batch ends, given the one in which its last line was answered or given up.
_ENDS = {
    BatchStatus.IN_PROGRESS: BatchStatus.COMPLETED,
    BatchStatus.CANCELLING: BatchStatus.CANCELLED,
    BatchStatus.FINALIZING: BatchStatus.EXPIRED,
}


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
            end(connection, batch, _ENDS[batch.status], **values)
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
    """Give lines that have been queued for long the priority of single questions; return how many.

    While there are always single questions, lines would otherwise never be asked. A sweep publishes them
    again; the messages that they have find nothing to claim.
    """
    # As a rule there is nothing to do, which should lock nothing.
    with database.read() as connection:
        if not batches.any_waiting(connection, PATIENCE):
            return 0
    with database.write() as connection:
        return batches.raise_priority(connection, PATIENCE, DEFAULT_PRIORITY)
