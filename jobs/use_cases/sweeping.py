"""The sweep: it takes expired leases back, and ends the jobs that must end."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from jobs import pipeline
from jobs.database import Database
from jobs.database_clock import utcnow
from jobs.models import AttemptStatus, Job, text_id
from jobs.statements import attempts, future_times, jobs, leases, pauses
from jobs.statements.jobs import IS_IN_PROGRESS, IS_LEASED
from jobs.use_cases.stages import DEADLINE_EXCEEDED

#: Seconds after its deadline after which a job ends even if a worker holds its lease.
DEADLINE_GRACE = 30.0
#: The reason of an attempt that was lost.
WORKER_LOST = "the worker that ran this attempt stopped responding"
#: Ends texts of attempts, given by the ids of their jobs and their own, and returns the pieces of those that are known.
CloseTexts = Callable[[Collection[tuple[str, str]]], Mapping[str, Sequence[str]]]


@dataclass(frozen=True)
class SweepResult:
    """The ids of the jobs that a sweep changed."""

    #: Taken back from workers that stopped responding.
    taken_back: list[str]
    #: Ended as failed: too many workers were lost, or the deadline has passed.
    failed: list[str]
    #: Had ended before; their attempts ended now.
    attempts_ended: list[str]


def any_unfinished(database: Database) -> bool:
    """Return whether any job has not ended, or any attempt: only then a sweep can find anything."""
    with database.read() as connection:
        return jobs.any_unfinished(connection)


def sweep(database: Database, close_texts: CloseTexts = lambda _: {}) -> SweepResult:
    """Take back the stages of workers that stopped responding, and end the jobs that must end.

    The ends of attempts and jobs are one unit of work.

    Args:
        database: of the jobs.
        close_texts: gets the texts that lost workers published. They are stored with their attempts, so that later
            readers of a job's events get what others got before.
    """
    overdue = _overdue()
    # As a rule there is nothing to do, which should lock nothing.
    with database.read() as connection:
        was_set_back = future_times.any_found(connection)
        if not was_set_back and not connection.scalar(jobs.any_match(leases.EXPIRED, overdue)):
            return SweepResult([], [], [])
        expired = leases.find_expired(connection)
    # What expires later is for the next sweep: its texts are not known.
    outputs = _outputs(expired, close_texts) if expired else {}
    with database.write() as connection:
        if was_set_back:
            future_times.correct(connection)
        attempts_ended = _end_attempts_of_ended(connection, outputs) if outputs else []
        taken_back, failed = _take_back(connection, outputs) if outputs else ([], [])
        # Running attempts of these end later, as those of cancelled jobs do.
        failed += jobs.fail(connection, overdue, "deadline_exceeded", DEADLINE_EXCEEDED)
    return SweepResult(taken_back, failed, attempts_ended)


def _outputs(
    expired: Sequence[sa.Row[*tuple[Any, ...]]], close_texts: CloseTexts
) -> dict[tuple[str, int], dict[str, Any]]:
    """Return what is known of the texts of expired leases, as columns of attempts, by job id and lease token."""
    texts = {
        (row.job_id, row.lease_token): (row.job_id, text_id(row.id, row.started_at))
        for row in expired
    }
    known = close_texts(list(texts.values()))
    return {
        lease: {"output": "".join(known[text]), "delta_lengths": [len(x) for x in known[text]]}
        if text in known
        else {}
        for lease, (_, text) in texts.items()
    }


def _overdue() -> sa.ColumnElement[bool]:
    return sa.and_(
        IS_IN_PROGRESS,
        sa.or_(
            # The end of a pause adds the time that it took to the deadlines of the jobs that waited.
            sa.and_(Job.worker_id.is_(None), Job.deadline_at < utcnow(), pauses.IS_NOT_PAUSED),
            # The worker that holds the lease should have ended the job by now.
            sa.and_(IS_LEASED, Job.deadline_at < utcnow(-DEADLINE_GRACE)),
        ),
    )


def _end_attempts_of_ended(
    connection: sa.Connection, outputs: Mapping[tuple[str, int], Mapping[str, Any]]
) -> list[str]:
    """End the lost attempts of jobs that have ended; return the jobs' ids."""
    ended = leases.take_back_expired_of_ended(connection, outputs)
    for job_id, token, status in ended:
        output = outputs[job_id, token]
        attempts.end_after_job(connection, job_id, token, status, error=WORKER_LOST, **output)
    return [row.id for row in ended]


def _take_back(
    connection: sa.Connection, outputs: Mapping[tuple[str, int], Mapping[str, Any]]
) -> tuple[list[str], list[str]]:
    """Take expired leases back; return the jobs' ids, and those of jobs that fail because of it."""
    lost = leases.take_back_expired(connection, outputs)
    failed = []
    for job_id, stage_index, token in lost:
        output = outputs[job_id, token]
        attempts.end(connection, job_id, token, AttemptStatus.LOST, error=WORKER_LOST, **output)
        count = attempts.count_lost(connection, job_id, stage_index)
        if count >= leases.MAX_LOST:
            role = pipeline.stages(pipeline.MAX_ROUNDS)[stage_index].role
            message = f"{count} workers were lost while they ran stage {stage_index} ({role})"
            failed += jobs.fail(connection, Job.id == job_id, "worker_lost", message)
    return [row.id for row in lost], failed
