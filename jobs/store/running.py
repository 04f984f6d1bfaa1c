"""What a worker does with a stage: it claims it, and records, fails or releases it."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from jobs import pipeline
from jobs.models import AttemptStatus, Status
from jobs.pipeline import Sampling, Stage
from jobs.store import statements
from jobs.store.base import Base
from jobs.store.statements import end_attempt, end_stopped

#: Seconds a claim holds without a heartbeat. With a sweep every few seconds a crashed worker's
#: stages are back well within the promised 30.
LEASE = 15.0
#: Attempts at one stage that may end with their worker lost before the job fails.
MAX_LOST = 3
#: Lost attempts after which a stage is run with no other beside it on its worker: so only the
#: stage that brings workers down gets to `MAX_LOST`, and not those that happened to be there too.
SUSPICIOUS = MAX_LOST - 1


@dataclass(frozen=True)
class Claim:
    """The right to run one stage of one job, until the lease runs out."""

    job_id: str
    attempt_id: int
    lease_token: int
    stage: Stage
    last: bool
    prompt: str
    sampling: Sampling
    #: The database's time at the claim.
    started_at: dt.datetime
    #: Seconds from then to the job's deadline.
    seconds_left: float


@dataclass(frozen=True)
class Output:
    """What a stage gave."""

    text: str
    #: Characters of each streamed piece of ``text``, in order.
    delta_lengths: list[int]
    #: Unknown of a generation that raised an error.
    prompt_tokens: int | None
    output_tokens: int | None
    #: ``stop``, ``length``, ``cancelled``, ``deadline`` or ``error``.
    finish_reason: str
    #: The token limit that applied.
    max_output_tokens: int
    #: Seconds from the claim to the first token, by the worker's monotonic clock.
    first_token_after: float | None


class Running(Base):
    """Stages as a worker sees them."""

    def claim(
        self,
        job_id: str,
        stage_index: int,
        worker_id: str,
        *,
        job_timeout: float,
        alone: bool = False,
    ) -> Claim | None:
        """Take the lease on a stage, or nothing if it is not there to be run.

        A duplicate or outdated message finds nothing to claim, nor does a worker with another model
        than that of the job's run. The first claim of a run settles its model.

        Args:
            job_id, stage_index: the stage.
            worker_id: who will run it.
            job_timeout: seconds that the job may take, if this is its first claim.
            alone: whether the worker runs nothing else meanwhile; if it does, stages that lost
                `SUSPICIOUS` workers are not given to it.
        """
        with self._write() as connection:
            job = connection.execute(
                statements.CLAIM,
                {
                    "job": job_id,
                    "stage": stage_index,
                    "worker": worker_id,
                    "lease": LEASE,
                    "timeout": job_timeout,
                    "alone": alone,
                    "suspicious": SUSPICIOUS,
                },
            ).one_or_none()
            if job is None:
                return None
            attempts = []
            if job.lease_token > 1:  # before the first lease of all nothing was tried
                attempts = list(connection.execute(statements.ATTEMPTS, {"job": job_id}))
            outputs = [
                a.output or ""
                for a in attempts
                if a.run == job.run and a.status is AttemptStatus.FINISHED
            ]
            chain = pipeline.stages(job.rounds)
            stage = chain[stage_index]
            sampling = Sampling(
                temperature=job.temperature,
                top_k=job.top_k,
                top_p=job.top_p,
                max_output_tokens=job.max_output_tokens,
                seed=pipeline.stage_seed(job.seed, stage_index),
            )
            prompt = pipeline.prompt(stage, job.system, job.question, outputs)
            attempt_id = connection.execute(
                statements.BEGIN_ATTEMPT,
                {
                    "job_id": job_id,
                    "stage_index": stage_index,
                    "role": stage.role,
                    "round": stage.round,
                    "run": job.run,
                    "number": 1 + sum(a.stage_index == stage_index for a in attempts),
                    "lease_token": job.lease_token,
                    "worker_id": worker_id,
                    "status": AttemptStatus.RUNNING,
                    "prompt": prompt,
                    "temperature": sampling.temperature,
                    "top_k": sampling.top_k,
                    "top_p": sampling.top_p,
                    "max_output_tokens": sampling.max_output_tokens,
                    "seed": sampling.seed,
                    "queued_at": job.ready_at,
                    "started_at": job.now,
                },
            ).scalar_one()
            return Claim(
                job_id=job_id,
                attempt_id=attempt_id,
                lease_token=job.lease_token,
                stage=stage,
                last=stage_index == len(chain) - 1,
                prompt=prompt,
                sampling=sampling,
                started_at=job.now,
                seconds_left=(job.deadline_at - job.now).total_seconds(),
            )

    def suspicious(self, job_id: str, stage_index: int) -> bool:
        """Whether a stage has lost so many workers that it should run alone."""
        with self._read_rows() as connection:
            lost = connection.scalar(statements.LOST, {"job": job_id, "stage": stage_index})
        return (lost or 0) >= SUSPICIOUS

    def record(self, claim: Claim, output: Output) -> bool:
        """Keep a stage's output and make the next stage ready, or end the job.

        Returns:
            False if the job was ended or the lease lost meanwhile: then nothing is recorded.
        """
        job: dict[str, object] = {}
        statement = statements.GO_ON
        if claim.last:
            statement = statements.COMPLETE
            cut = output.finish_reason == "length"
            job["status"] = Status.INCOMPLETE if cut else Status.COMPLETED
        return self._settle(claim, statement, job, AttemptStatus.FINISHED, _columns(claim, output))

    def fail(self, claim: Claim, code: str, message: str, output: Output | None = None) -> bool:
        """End a job whose stage cannot be finished, with the reason and the text so far.

        Returns:
            False if the job was ended or the lease lost meanwhile: then nothing is recorded.
        """
        job = {"status": Status.FAILED, "error_code": code, "error_message": message}
        attempt = {"error": message, **(_columns(claim, output) if output else {})}
        return self._settle(claim, statements.END, job, AttemptStatus.FAILED, attempt)

    def release(self, claim: Claim, reason: str) -> bool:
        """Give a claimed stage back, to be run again by whoever comes first.

        Returns:
            False if the job was ended or the lease lost meanwhile: then nothing is changed.
        """
        job = {"published_at": None}
        return self._settle(
            claim, statements.SETTLE, job, AttemptStatus.RELEASED, {"error": reason}
        )

    def keep_partial(self, claim: Claim, output: Output | None) -> None:
        """End the attempt of a job that was ended meanwhile, with what had been generated.

        It was cancelled, or long past its deadline. Of an attempt that has ended, because its
        worker was taken for dead, nothing more is kept.
        """
        with self._write() as connection:
            held = {"job": claim.job_id, "token": claim.lease_token}
            job = connection.execute(statements.LET_GO, held).one_or_none()
            if job is not None:
                columns = _columns(claim, output) if output else {}
                end_stopped(
                    connection,
                    claim.job_id,
                    claim.lease_token,
                    job.status,
                    error=job.error_message,
                    **columns,
                )

    def _settle(
        self,
        claim: Claim,
        statement: sa.Update,
        job: Mapping[str, object],
        status: AttemptStatus,
        attempt: Mapping[str, object],
    ) -> bool:
        """Hand the lease back and end the attempt, both with new values, in one transaction.

        Returns:
            False if the job has ended or the lease is no longer the claim's: nothing is changed.
        """
        held = {"job": claim.job_id, "token": claim.lease_token}
        with self._write() as connection:
            if not connection.execute(statement, {**held, **job}).rowcount:
                return False
            end_attempt(connection, claim.job_id, claim.lease_token, status, **attempt)
        return True


def _columns(claim: Claim, output: Output) -> dict[str, Any]:
    """Spell an output in the columns of the attempt that gave it and ends now."""
    first_token_at = None
    if output.first_token_after is not None:
        # The attempt started by the database's clock; what came after, the worker measured.
        first_token_at = claim.started_at + dt.timedelta(seconds=output.first_token_after)
    return {
        "output": output.text,
        "delta_lengths": output.delta_lengths,
        "prompt_tokens": output.prompt_tokens,
        "output_tokens": output.output_tokens,
        "finish_reason": output.finish_reason,
        "max_output_tokens": output.max_output_tokens,
        "first_token_at": first_token_at,
    }
