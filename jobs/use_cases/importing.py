"""Importing: jobs that ended elsewhere get rows here, with the proofs that they came with.

They ended under another log, and that log's proof stays with each of them (`Job.origin_proof`). The log of this
database gets an entry too (`jobs.use_cases.sealing`), of another type than that of a job that ended here: it says
that the history was imported, and which proof it had. Its reviews and erasures get the usual entries, which name the
proofs that they had.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from jobs.database import Database
from jobs.database_clock import utcnow
from jobs.errors import UserError
from jobs.models import Job, Worker, WorkerState
from jobs.statements import log, whole_jobs, workers
from jobs.transient import retry_on_conflict

#: Returns why a stored job (the first) is not the one of the file; None if it is.
Compare = Callable[[Job, Job], str | None]


class ImportRefusedError(UserError):
    """A job cannot be imported. The message says which line of the file has it, and why."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(f"line {line}: {reason}")
        self.line = line


def check(database: Database, jobs: Mapping[int, Job], compare: Compare) -> None:
    """Check that jobs can be imported; see `add`."""
    with database.read_session() as session:
        _new(session, jobs, compare)


@retry_on_conflict
def add(database: Database, jobs: Mapping[int, Job], compare: Compare) -> int:
    """Add jobs in one transaction; return how many were not there.

    Args:
        database: gets the jobs.
        jobs: ended jobs with their attempts, the workers that ran them, their reviews and their erasures, by the
            line of the file.
        compare: compares two jobs.

    Raises:
        ImportRefusedError: a job with the same id is there and differs, or was deleted. Nothing was added.
    """
    try:
        with database.write_session() as session:
            new = _new(session, jobs, compare)
            if new:
                workers.add_tokenizer(session.connection(), workers.IMPORTED, b"")
            _share_workers(session, new)
            session.add_all(new.values())
            session.flush()
    except (sa.exc.StatementError, OverflowError) as error:
        if isinstance(error, (sa.exc.OperationalError, sa.exc.InternalError)):
            raise  # Of the database, and not of the values.
        raise ImportRefusedError(
            min(jobs), f"it, or one up to line {max(jobs)}, cannot be stored: {_reason(error)}"
        ) from error
    return len(new)


def _new(session: Session, jobs: Mapping[int, Job], compare: Compare) -> dict[int, Job]:
    """Return the jobs that are not there yet."""
    ids = {job.id for job in jobs.values()}
    there = whole_jobs.load(session, ids)
    deleted = log.find_known(session.connection(), ids) - there.keys()
    new = {}
    for line, job in jobs.items():
        if job.id in deleted:
            raise ImportRefusedError(
                line, f"{job.id} was deleted from this database, as its log says"
            )
        if (same := there.get(job.id)) is None:
            there[job.id] = new[line] = job
        elif (reason := compare(same, job)) is not None:
            raise ImportRefusedError(line, f"{job.id} is there already, and {reason}")
    _check_workers(workers.load(session, _worker_ids(new)), new)
    return new


def _check_workers(there: Mapping[str, Worker], jobs: Mapping[int, Job]) -> None:
    seen = dict(there)
    for line, job in jobs.items():
        for attempt in job.attempts:
            worker = seen.setdefault(attempt.worker.id, attempt.worker)
            if _described(worker) != _described(attempt.worker):
                raise ImportRefusedError(
                    line, f"a worker {worker.id} is there already, and differs"
                )


def _described(worker: Worker) -> tuple[Any, ...]:
    return worker.host, worker.pid, worker.model, worker.runtime


def _worker_ids(jobs: Mapping[int, Job]) -> Collection[str]:
    return {attempt.worker.id for job in jobs.values() for attempt in job.attempts}


def _share_workers(session: Session, jobs: Mapping[int, Job]) -> None:
    """Give the attempts the workers that are there; add the others, as ones that have stopped."""
    there = workers.load(session, _worker_ids(jobs))
    for job in jobs.values():
        for attempt in job.attempts:
            worker = attempt.worker
            if worker.id not in there:
                there[worker.id] = worker
                worker.state = WorkerState.STOPPED
                worker.started_at = worker.seen_at = attempt.started_at
                worker.stopped_at = utcnow()
                worker.context = 0
                worker.tokenizer_digest = workers.IMPORTED
            attempt.worker = there[worker.id]


def _reason(error: Exception) -> str:
    return str(getattr(error, "orig", error)).strip().partition("\n")[0]
