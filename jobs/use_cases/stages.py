"""Running stages: a worker claims a stage, and then records, fails or releases it."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Any

import sqlalchemy as sa

from jobs import pipeline
from jobs.database import Database
from jobs.models import AttemptStatus, Job, Status, text_id
from jobs.pipeline import Sampling, Stage, Turn, sampling_values
from jobs.statements import attempts, jobs, leases, pauses, workers
from jobs.statements.leases import Lease

#: The reason of a job that failed because it took too long.
DEADLINE_EXCEEDED = "the job exceeded its time limit (HELIXQ_JOB_TIMEOUT)"


@dataclass(frozen=True)
class Claim:
    """The right to run one stage of one job, until the lease expires."""

    job_id: str
    attempt_id: int
    #: What its text is called while it is generated (`jobs.models.text_id`).
    text_id: str
    #: 1 for the first attempt at the stage.
    attempt_number: int
    lease_token: int
    worker_id: str
    stage: Stage
    last: bool
    prompt: str
    sampling: Sampling
    #: The database's time at the claim.
    started_at: dt.datetime
    #: Seconds from then to the job's deadline.
    seconds_left: float
    #: The span that the job is below, if any, and what goes with it (`jobs.trace_context`).
    traceparent: str | None
    tracestate: str | None

    @property
    def number(self) -> int:
        """The place of the attempt among all of the job, from 0 on. Every claim adds one."""
        return self.lease_token - 1

    @property
    def lease(self) -> Lease:
        """The lease that it took."""
        return Lease(self.job_id, self.lease_token, self.stage.index, self.worker_id)


@dataclass(frozen=True)
class Output:
    """What a stage generated."""

    text: str
    #: Characters of each streamed piece of ``text``, in order; they add up to its length.
    delta_lengths: list[int]
    #: None if the generation raised an error, or a server did not say it.
    prompt_tokens: int | None
    output_tokens: int | None
    #: ``stop``, ``stop_string``, ``length``, ``cancelled``, ``deadline`` or ``error``.
    finish_reason: str
    #: The limit that applied.
    max_output_tokens: int
    #: Seconds from the claim to the first token, by the worker's monotonic clock.
    first_token_after: float | None
    #: The address of the server that generated it, if the engine is elsewhere.
    server: str | None = None


def claim(
    database: Database,
    job_id: str,
    stage_index: int,
    worker_id: str,
    *,
    job_timeout: float,
    exclusive: bool = False,
) -> Claim | None:
    """Claim a stage: take its lease, and begin an attempt with its exact prompt.

    A duplicate or outdated message finds nothing to claim, and neither does a worker whose model is not
    that of the job's run, or any worker while the queue is paused. The first claim of a run sets its model.

    Args:
        database: of the jobs.
        job_id: of the job.
        stage_index: of the stage.
        worker_id: of the worker that will run it.
        job_timeout: seconds that the job may take from its first claim on.
        exclusive: whether the worker runs nothing else meanwhile (`Refusal.NEEDS_EXCLUSIVE_WORKER`).
    """
    with database.write() as connection:
        job = leases.claim(
            connection,
            job_id,
            stage_index,
            worker_id,
            job_timeout=job_timeout,
            exclusive=exclusive,
        )
        if job is None:
            return None
        return _begin_attempt(connection, job, job_id, stage_index, worker_id)


def _begin_attempt(
    connection: sa.Connection,
    job: sa.Row[*tuple[Any, ...]],
    job_id: str,
    stage_index: int,
    worker_id: str,
) -> Claim:
    # Before the first lease of all there are no attempts.
    earlier = attempts.of_job(connection, job_id) if job.lease_token > 1 else []
    outputs = [
        a.output or "" for a in earlier if a.run == job.run and a.status is AttemptStatus.FINISHED
    ]
    stage = pipeline.stages(job.rounds)[stage_index]
    turns = [Turn(**turn) for turn in job.turns or ()]
    prompt = pipeline.prompt(stage, job.system, job.question, outputs, turns)
    number = 1 + sum(a.stage_index == stage_index for a in earlier)
    attempt_id = attempts.add(
        connection,
        job_id=job_id,
        stage_index=stage_index,
        role=stage.role,
        round=stage.round,
        run=job.run,
        number=number,
        lease_token=job.lease_token,
        worker_id=worker_id,
        status=AttemptStatus.RUNNING,
        prompt=prompt,
        **sampling_values(_sampling(job, stage)),
        queued_at=job.ready_at,
        started_at=job.now,
    )
    text = text_id(attempt_id, job.now)
    return _claim(job, job_id, stage, worker_id, attempt_id, text, number, prompt)


def find_claim(database: Database, job_id: str, stage_index: int, worker_id: str) -> Claim | None:
    """Return the claim that a worker has on a stage, as if it had claimed it now; None if it has none.

    It is for a worker whose call of `claim` failed, and may have succeeded: the connection broke during its commit.
    """
    with database.read() as connection:
        job = leases.find_held(connection, job_id, stage_index, worker_id)
        if job is None:
            return None
        attempt = attempts.get_running(connection, job_id, job.lease_token)
    stage = pipeline.stages(job.rounds)[stage_index]
    return _claim(
        job,
        job_id,
        stage,
        worker_id,
        attempt.id,
        text_id(attempt.id, attempt.started_at),
        attempt.number,
        attempt.prompt,
    )


def _claim(
    job: sa.Row[*tuple[Any, ...]],
    job_id: str,
    stage: Stage,
    worker_id: str,
    attempt_id: int,
    text_id: str,
    attempt_number: int,
    prompt: str,
) -> Claim:
    return Claim(
        job_id=job_id,
        attempt_id=attempt_id,
        text_id=text_id,
        attempt_number=attempt_number,
        lease_token=job.lease_token,
        worker_id=worker_id,
        stage=stage,
        last=_is_last(job, stage),
        prompt=prompt,
        sampling=_sampling(job, stage),
        started_at=job.now,
        seconds_left=(job.deadline_at - job.now).total_seconds(),
        traceparent=job.traceparent,
        tracestate=job.tracestate,
    )


def _sampling(job: sa.Row[*tuple[Any, ...]], stage: Stage) -> Sampling:
    stop = tuple(job.stop or ()) if _is_last(job, stage) else ()
    sampling = Sampling(**sampling_values(job), stop=stop)
    return replace(sampling, seed=pipeline.stage_seed(job.seed, stage.index))


def _is_last(job: sa.Row[*tuple[Any, ...]], stage: Stage) -> bool:
    return stage.index == len(pipeline.stages(job.rounds)) - 1


class Refusal(Enum):
    """Why a stage was not claimed."""

    #: It was claimed, or its job has ended.
    NOT_READY = auto()
    #: There is no such job: it was deleted, or the database lost it in a failover or was restored.
    NO_SUCH_JOB = auto()
    #: The queue is paused.
    PAUSED = auto()
    #: It has lost enough attempts that it must run with no other beside it.
    NEEDS_EXCLUSIVE_WORKER = auto()
    #: The worker has no row, since the database was set back or the worker was silent for too long.
    NOT_REGISTERED = auto()
    #: The worker has another model, or the reason is there no more.
    OTHER = auto()


def why_refused(database: Database, job_id: str, stage_index: int, worker_id: str) -> Refusal:
    """Return why a worker could not claim a stage."""
    with database.read() as connection:
        if not leases.is_ready(connection, job_id, stage_index):
            known = connection.scalar(jobs.any_match(Job.id == job_id))
            return Refusal.NOT_READY if known else Refusal.NO_SUCH_JOB
        if pauses.is_paused(connection):
            return Refusal.PAUSED
        if not workers.is_registered(connection, worker_id):
            return Refusal.NOT_REGISTERED
        if attempts.count_lost(connection, job_id, stage_index) >= leases.EXCLUSIVE_AFTER:
            return Refusal.NEEDS_EXCLUSIVE_WORKER
        return Refusal.OTHER


def record(database: Database, claim: Claim, output: Output) -> bool:
    """Record a stage's output, and make the next stage ready or end the job.

    It may be called again if it is unknown whether it succeeded, because the connection broke during its commit.

    Returns:
        False if the job has ended or the lease is lost: then nothing is recorded.
    """
    statement, job = leases.ADVANCE, {}
    if claim.last:
        cut = output.finish_reason == "length"
        statement = leases.COMPLETE
        job = {"status": Status.INCOMPLETE if cut else Status.COMPLETED}
    columns = _columns(claim, output)
    if _end(database, claim, statement, job, AttemptStatus.FINISHED, columns):
        return True
    return database.query(
        lambda connection: attempts.is_finished(
            connection, claim.job_id, claim.lease_token, claim.worker_id
        )
    )


def fail(
    database: Database,
    claim: Claim,
    code: str,
    message: str,
    output: Output | None = None,
    *,
    server: str | None = None,
) -> bool:
    """End a job whose stage failed, with the reason and the text so far.

    Args:
        database: of the job.
        claim: of the stage.
        code, message: the reason.
        output: the text so far, if any.
        server: the server that refused it, if there is no text and the engine is elsewhere.

    Returns:
        False if the job has ended or the lease is lost: then nothing is recorded.
    """
    job = {"status": Status.FAILED, "error_code": code, "error_message": message}
    columns = {"error": message, "server": server}
    if output is not None:
        columns |= _columns(claim, output)
    return _end(database, claim, leases.END, job, AttemptStatus.FAILED, columns)


def release(database: Database, claim: Claim, reason: str, output: Output | None = None) -> bool:
    """Give a claimed stage back, so that another worker can run it. A sweep publishes it.

    Args:
        database: of the job.
        claim: of the stage.
        reason: for the history.
        output: the text so far; None if nothing was generated.

    Returns:
        False if the job has ended or the lease is lost: then nothing is changed.
    """
    job = {"published_at": None}
    columns = {"output": "", "delta_lengths": []} if output is None else _columns(claim, output)
    # The text did not end: it goes on elsewhere.
    columns |= {"error": reason, "finish_reason": None}
    return _end(database, claim, leases.RELEASE, job, AttemptStatus.RELEASED, columns)


def keep_partial(database: Database, claim: Claim, output: Output | None) -> None:
    """End the attempt of a job that ended meanwhile, with the text so far.

    The job was cancelled, or is long past its deadline. Nothing is changed if the attempt has ended
    because its worker was taken for dead.
    """
    with database.write() as connection:
        job = leases.give_back_ended(connection, claim.lease)
        if job is not None:
            columns = _columns(claim, output) if output else {}
            attempts.end_after_job(
                connection,
                claim.job_id,
                claim.lease_token,
                job.status,
                error=job.error_message,
                **columns,
            )


def _end(
    database: Database,
    claim: Claim,
    statement: sa.Update,
    job: Mapping[str, object],
    status: AttemptStatus,
    attempt: Mapping[str, object],
) -> bool:
    """Give the lease back and end the attempt, both with new values."""
    with database.write() as connection:
        if not leases.give_back(connection, statement, claim.lease, job):
            return False
        attempts.end(connection, claim.job_id, claim.lease_token, status, **attempt)
    return True


def _columns(claim: Claim, output: Output) -> dict[str, Any]:
    """Return an output as columns of its attempt."""
    first_token_at = None
    if output.first_token_after is not None:
        # The start is the database's time; what came after, the worker's monotonic clock measured.
        first_token_at = claim.started_at + dt.timedelta(seconds=output.first_token_after)
    return {
        "output": output.text,
        "delta_lengths": output.delta_lengths,
        "prompt_tokens": output.prompt_tokens,
        "output_tokens": output.output_tokens,
        "finish_reason": output.finish_reason,
        "max_output_tokens": output.max_output_tokens,
        "first_token_at": first_token_at,
        "server": output.server,
    }
