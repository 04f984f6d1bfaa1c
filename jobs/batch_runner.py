"""The background duty that works on batches: validates their lines, submits them, and writes their answers.

It runs in every worker and in `helixq maintain`. Each step is a use case (of `jobs.use_cases.batch_work`,
`batch_validation` or `batch_answers`), so a process may die between any two of them, and another one goes on.

Lines wait in their batch and not in the queue: a few of them are jobs at a time, shared between owners and
between an owner's batches, and with the lowest priority. So a single question waits for no more than a job
that is running, and a new batch for no more than the few lines that are queued.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Sequence
from typing import Any

from jobs import batch_input, logs, transient
from jobs.batch_input import BatchInput
from jobs.database import Database
from jobs.dispatch import publish
from jobs.models import BatchStatus, Job
from jobs.progress import Progress
from jobs.protocol import batch_lines
from jobs.protocol.errors import CancelledError, ProtocolError
from jobs.protocol.response import response
from jobs.queue import Publisher
from jobs.use_cases import batch_answers, batch_validation, batch_work
from jobs.use_cases.batch_answers import LineResult, Submission
from jobs.use_cases.batch_work import Work
from jobs.use_cases.submission import NewJob

log = logging.getLogger(__name__)

#: Seconds of one call at most: other duties run in between.
MAX_TIME = 1.0
#: The share of the time of a step for which to wait after it: a worker's engine needs the interpreter too.
PAUSE = 0.5
#: The number of lines to keep queued: a fixed number, and some more for each running line.
MIN_WINDOW = 8
WINDOW_PER_RUNNING = 2
#: Answers that are written in one transaction.
MAX_ANSWERS = 100

_GIVEN_UP = {
    BatchStatus.CANCELLING: (
        "batch_cancelled",
        "The batch was cancelled before this request was answered.",
    ),
    BatchStatus.FINALIZING: (
        "batch_expired",
        "This request was not answered before the completion window expired.",
    ),
}


class BatchRunner:
    """Works on batches, for one process."""

    def __init__(
        self,
        database: Database,
        publisher: Publisher,
        progress: Progress,
        stopped: threading.Event,
    ) -> None:
        """
        Args:
            database: of the batches and jobs.
            publisher: publishes the jobs.
            progress: gets the changes of jobs.
            stopped: ends a call early.
        """
        self._database = database
        self._publisher = publisher
        self._progress = progress
        self._stopped = stopped
        self._input = BatchInput(database)
        #: The process's name for its leases.
        self._name = secrets.token_hex(16)

    def run(self) -> bool:
        """Do the next steps of the batches that no other process works on.

        Returns:
            whether something was done: there may be more.
        """
        busy = False
        work = batch_work.find_work(self._database, self._name)
        # From here on: however long the database took, each call does a step.
        deadline = time.monotonic() + MAX_TIME
        shares = share(work)
        for one in work:
            if one.taken or self._stopped.is_set() or time.monotonic() > deadline:
                continue
            with logs.bound(batch_id=one.batch_id):
                try:
                    busy |= self._step(one, shares.get(one.batch_id, 0), deadline)
                except Exception as error:
                    if transient.is_transient(error):
                        raise
                    # Other batches go on.
                    log.exception("%s: a step failed", one.batch_id)
        return busy

    def _step(self, work: Work, lines: int, deadline: float) -> bool:
        """Do the next steps of a batch; return whether something was done."""
        match work.status:
            case BatchStatus.VALIDATING if not work.expired:
                return self._validate(work.batch_id, deadline)
            case BatchStatus.VALIDATING:
                return self._note_end(
                    work.batch_id,
                    batch_work.end_unstarted(self._database, work.batch_id, self._name),
                )
            case BatchStatus.CANCELLING | BatchStatus.FINALIZING:
                return self._give_up(work, deadline)
        if work.expired:
            ended = batch_work.expire_batch(self._database, work.batch_id, self._name)
            for job_id in ended or ():
                self._progress.publish_change(job_id)
            return ended is not None
        done = False
        if work.ended:
            done = self._write_answers(work.batch_id)
        if lines:
            done |= self._submit(work.batch_id, lines)
        return done

    def _validate(self, batch_id: str, deadline: float) -> bool:
        """Validate a batch's input, for as long as there is time."""
        batch = batch_work.take_batch(self._database, batch_id, self._name)
        if batch is None or batch.status is not BatchStatus.VALIDATING:
            return False
        size = batch_work.input_size(self._database, batch)
        lines = self._input.lines(batch, batch.validated_bytes)
        position, number, total = batch.validated_bytes, batch.validated_lines, batch.total
        while True:
            started = time.monotonic()
            piece = self._input.validate(batch, lines, position, number, total, size)
            status = batch_validation.record_piece(self._database, batch_id, self._name, piece)
            if status is not BatchStatus.VALIDATING:
                return self._note_end(batch_id, status)
            position, number = piece.end, piece.last_line
            total += len(piece.lines)
            if time.monotonic() > deadline or self._pause(started):
                return True

    def _submit(self, batch_id: str, count: int) -> bool:
        """Make jobs of a batch's next lines."""
        batch = batch_work.take_batch(self._database, batch_id, self._name)
        if batch is None or batch.status is not BatchStatus.IN_PROGRESS:
            return False
        jobs: dict[int, NewJob] = {}
        refused: list[LineResult] = []
        size, last_line = 0, batch.submitted_line
        pending = batch_answers.pending_lines(
            self._database, batch, min(count, batch_input.PIECE_LINES)
        )
        first = pending[0].start if pending else 0
        lines = self._input.lines(batch, first, chunks=1)
        for number, custom_id, start, length in pending:
            if size and size + length > batch_input.PIECE_BYTES:
                break
            size += length
            last_line = number
            try:
                line = next((line for line in lines if line.start >= start), None)
                jobs[number] = self._input.job(batch, number, custom_id, line)
            except Exception as error:  # noqa: BLE001 (whatever it is, only the line is wrong)
                text = batch_lines.refused_line(
                    batch_id, number, custom_id, self._input.refusal(error, batch_id, number), None
                )
                refused.append(LineResult(number, text, failed=True))
        if last_line == batch.submitted_line:
            return False
        submission = Submission(batch.submitted_line, last_line, jobs)
        submitted = batch_answers.record_lines(
            self._database, batch_id, self._name, refused, submission
        )
        publish(self._database, self._publisher, submitted or [])
        return submitted is not None

    def _write_answers(self, batch_id: str) -> bool:
        """Write the answers of lines whose jobs have ended; return whether there were any."""
        batch = batch_work.take_batch(self._database, batch_id, self._name)
        if batch is None:
            return False
        ended = batch_answers.ended_lines(self._database, batch_id, limit=MAX_ANSWERS)
        results = [
            _result(batch, number, custom_id, job_id, job)
            for number, custom_id, job_id, job in ended
        ]
        recorded = batch_answers.record_lines(self._database, batch_id, self._name, results)
        return bool(results) and recorded is not None

    def _give_up(self, work: Work, deadline: float) -> bool:
        """Write what is there of a batch that is cancelled or has expired, and errors for all other lines."""
        batch = batch_work.take_batch(self._database, work.batch_id, self._name)
        if batch is None:
            return False
        if batch.in_progress_at is None:
            return self._note_end(
                batch.id, batch_work.end_unstarted(self._database, batch.id, self._name)
            )
        while self._write_answers(batch.id):
            if time.monotonic() > deadline:
                return True
        code, message = _GIVEN_UP[batch.status]
        while lines := batch_answers.pending_lines(self._database, batch, batch_input.PIECE_LINES):
            results = [
                LineResult(
                    number,
                    batch_lines.unanswered_line(batch.id, number, custom_id, code, message),
                    failed=True,
                )
                for number, custom_id, _, _ in lines
            ]
            submission = Submission(batch.submitted_line, lines[-1].number)
            recorded = batch_answers.record_lines(
                self._database, batch.id, self._name, results, submission
            )
            if recorded is None or time.monotonic() > deadline:
                return True
            batch = batch_work.take_batch(self._database, batch.id, self._name)
            if batch is None:
                break
        return True

    def _note_end(self, batch_id: str, status: BatchStatus | None) -> bool:
        if status is not None:
            log.info("%s: %s", batch_id, status)
        return status is not None

    def _pause(self, started: float) -> bool:
        """Wait for a share of the time since a step started; return whether to stop."""
        return self._stopped.wait(PAUSE * (time.monotonic() - started))


def share(work: Sequence[Work]) -> dict[str, int]:
    """Return how many lines of each batch to submit.

    The number of lines that are queued is limited, and grows with the number that are running. It is
    shared equally between the owners that have lines to submit, and between the batches of each. An owner
    that comes later gets its share at once, whatever is queued for others.
    """
    ready = [one for one in work if one.status is BatchStatus.IN_PROGRESS and not one.expired]
    open_ = [one for one in ready if one.pending > 0]
    if not open_:
        return {}
    window = MIN_WINDOW + WINDOW_PER_RUNNING * sum(one.running for one in ready)
    owners: dict[str, list[Work]] = {}
    for one in open_:
        owners.setdefault(one.owner, []).append(one)
    shares: dict[str, int] = {}
    for owner, theirs in owners.items():
        queued = {one.batch_id: one.queued for one in theirs}
        # Lines of the owner's batches that have none to submit count too.
        others = sum(o.queued for o in ready if o.owner == owner and o.batch_id not in queued)
        free = -(-window // len(owners)) - others - sum(queued.values())
        pending = {one.batch_id: one.pending for one in theirs}
        for _ in range(max(0, free)):
            batch_id = min(
                (b for b, left in pending.items() if left > 0), key=queued.__getitem__, default=None
            )
            if batch_id is None:
                break
            queued[batch_id] += 1
            pending[batch_id] -= 1
            shares[batch_id] = shares.get(batch_id, 0) + 1
    return shares


def _result(batch: Any, number: int, custom_id: str, job_id: str, job: Job | None) -> LineResult:
    """Return what a batch's files say about a line whose job has ended."""
    if job is None:
        return LineResult(
            number,
            batch_lines.unanswered_line(
                batch.id, number, custom_id, "deleted", f"The job {job_id} was deleted."
            ),
            failed=True,
        )
    try:
        text = batch_lines.answer_line(batch.id, number, custom_id, batch.endpoint, job)
    except ProtocolError as error:
        if isinstance(error, CancelledError):
            code, message = _GIVEN_UP.get(batch.status, (error.code, error.message))
            text = batch_lines.unanswered_line(batch.id, number, custom_id, code, message)
        else:
            text = batch_lines.refused_line(batch.id, number, custom_id, error, job.id)
        return LineResult(number, text, failed=True)
    usage = response(job)["usage"]
    return LineResult(
        number,
        text,
        failed=False,
        input_tokens=usage["input_tokens"],
        output_tokens=usage["output_tokens"],
        reasoning_tokens=usage["output_tokens_details"]["reasoning_tokens"],
    )
