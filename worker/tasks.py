"""actor, critic, regenerator: claim → generate → record."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from celery import Celery, Task
from celery.exceptions import Ignore
from fasteners import ReaderWriterLock
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from jobs import transient
from jobs.database import Database
from jobs.pipeline import Role
from jobs.queue import task_name
from jobs.retrying import retry
from jobs.use_cases import outbox, stages, workers
from jobs.use_cases.stages import DEADLINE_EXCEEDED, Claim, Output
from worker.engine.interface import (
    Completion,
    ContextExceededError,
    Engine,
    EngineError,
    FinishReason,
    Generation,
    Request,
)
from worker.reporter import Reporter

log = logging.getLogger(__name__)

#: Seconds between two tries while the database does not respond.
MIN_RETRY_DELAY, MAX_RETRY_DELAY = 0.1, 5.0

T = TypeVar("T")


class StageRunner:
    """Runs stages for the tasks, and knows which are running."""

    def __init__(
        self,
        database: Database,
        engine: Engine,
        reporter: Reporter,
        worker_id: str,
        *,
        job_timeout: float,
    ) -> None:
        self._database = database
        self._engine = engine
        self._reporter = reporter
        self._worker_id = worker_id
        self._job_timeout = job_timeout
        self._running: dict[tuple[str, int], Generation | None] = {}
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        #: Held to write by a stage that must run alone, and to read by all others.
        self._alone = ReaderWriterLock()

    def run(self, job_id: str, stage_index: int) -> None:
        """Run one stage, if it is there to be run; return when its output is kept.

        Raises:
            Ignore: the chain ends here: there was nothing to claim, or the job ended.
        """
        with self._alone.read_lock():
            if (claim := self._claim(job_id, stage_index)) is not None:
                self._run_claimed(claim)
                return
        if self.with_retries(
            lambda: stages.needs_exclusive_worker(self._database, job_id, stage_index)
        ):
            with self._alone.write_lock():
                if (claim := self._claim(job_id, stage_index, exclusive=True)) is not None:
                    log.warning("%s: stage %d lost its workers; it runs alone", job_id, stage_index)
                    self._run_claimed(claim)
                    return
        log.debug("%s: nothing to do for stage %d", job_id, stage_index)
        raise Ignore("nothing to claim")

    def _claim(self, job_id: str, stage_index: int, *, exclusive: bool = False) -> Claim | None:
        if self._stopping.is_set():
            self.with_retries(lambda: outbox.mark_unpublished(self._database, job_id, stage_index))
            raise Ignore("the worker is stopping")
        return self.with_retries(
            lambda: stages.claim(
                self._database,
                job_id,
                stage_index,
                self._worker_id,
                job_timeout=self._job_timeout,
                exclusive=exclusive,
            )
        )

    def _run_claimed(self, claim: Claim) -> None:
        job_id = claim.job_id
        key = (claim.job_id, claim.lease_token)
        with self._lock:
            self._running[key] = None
        try:
            going_on = self._run(claim)
        except Exception as error:
            # Whatever it is, the stage must not stay in progress with nobody at it.
            log.exception("%s: a stage failed", job_id)
            going_on = self._failed(claim, "server_error", f"{type(error).__name__}: {error}")
        finally:
            with self._lock:
                del self._running[key]
            self._reporter.changed(job_id)
        if not going_on:
            raise Ignore("the chain ends here")

    def _run(self, claim: Claim) -> bool:
        """Generate and record; True if the next stage may follow."""
        started = time.monotonic()
        log.info("%s: %s starts", claim.job_id, claim.stage.role)
        self._reporter.changed(claim.job_id)
        try:
            generation = self._engine.submit(
                Request(
                    role=claim.stage.role,
                    prompt=claim.prompt,
                    sampling=claim.sampling,
                    deadline=started + claim.seconds_left,
                    priority=claim.stage.index,
                )
            )
        except ContextExceededError as error:
            return self._failed(claim, "context_length_exceeded", str(error))
        self._may_be_stopped(claim, generation)
        self._reporter.follow(claim.job_id, claim.attempt_id, generation)
        try:
            completion = generation.result()
        except EngineError as error:
            message = f"the {claim.stage.role} could not be run: {error}"
            return self._failed(claim, "server_error", message, _broken_off(claim, generation))
        return self._keep(claim, completion, _output(completion, started))

    def _keep(self, claim: Claim, completion: Completion, output: Output) -> bool:
        if completion.finish_reason is FinishReason.CANCELLED:
            if self._stopping.is_set() and self.with_retries(
                lambda: stages.release(self._database, claim, "the worker shut down")
            ):
                log.info("%s: %s goes back to the queue", claim.job_id, claim.stage.role)
            else:
                self.with_retries(lambda: stages.keep_partial(self._database, claim, output))
                log.info("%s: %s stopped", claim.job_id, claim.stage.role)
            return False
        if completion.finish_reason is FinishReason.DEADLINE:
            return self._failed(claim, "deadline_exceeded", DEADLINE_EXCEEDED, output)
        if not self.with_retries(lambda: stages.record(self._database, claim, output)):
            # Cancelled in the last moment, or this worker was taken for dead.
            self.with_retries(lambda: stages.keep_partial(self._database, claim, output))
            log.info(
                "%s: %s finished for nothing: its lease is gone", claim.job_id, claim.stage.role
            )
            return False
        log.info(
            "%s: %s finished: %d tokens, %s",
            claim.job_id,
            claim.stage.role,
            output.output_tokens,
            output.finish_reason,
        )
        return True

    def _failed(self, claim: Claim, code: str, message: str, output: Output | None = None) -> bool:
        if self.with_retries(lambda: stages.fail(self._database, claim, code, message, output)):
            log.warning("%s: failed: %s", claim.job_id, message)
        else:
            self.with_retries(lambda: stages.keep_partial(self._database, claim, output))
            log.info("%s: failed for nothing, its lease is gone: %s", claim.job_id, message)
        return False

    def _may_be_stopped(self, claim: Claim, generation: Generation) -> None:
        with self._lock:
            self._running[claim.job_id, claim.lease_token] = generation
        if self._stopping.is_set():
            generation.cancel()

    @property
    def running(self) -> list[tuple[str, int]]:
        """The (job id, lease token) pairs of the stages that threads are busy with."""
        with self._lock:
            return list(self._running)

    def publish_later(self, job_id: str, stage_index: int, error: Exception) -> None:
        """Leave a stage, for which Redis took no message, to the next sweep."""
        reason = transient.reason(error)
        log.warning("%s: stage %d is published later: %s", job_id, stage_index, reason)
        self.with_retries(lambda: outbox.mark_unpublished(self._database, job_id, stage_index))

    def cancel_lost(self) -> None:
        """Stop the generations whose jobs were cancelled or taken away."""
        with self._lock:
            running = dict(self._running)
        if not running:
            return
        held = workers.held_leases(self._database, self._worker_id)
        for key, generation in running.items():
            if generation is not None and key not in held:
                generation.cancel()

    def stop(self) -> None:
        """Stop all generations and give their stages back; none starts any more."""
        self._stopping.set()
        with self._lock:
            for generation in self._running.values():
                if generation is not None:
                    generation.cancel()

    def with_retries(self, call: Callable[[], T]) -> T:
        """Call the database until it responds: a finished text must not be lost."""
        return retry(
            call,
            is_transient=transient.is_transient,
            log=log,
            message="the database does not answer, trying again",
            min_delay=MIN_RETRY_DELAY,
            max_delay=MAX_RETRY_DELAY,
            stopping=self._stopping,
        )


def _broken_off(claim: Claim, generation: Generation) -> Output:
    """What is known of a generation that raised an error: the text handed on before."""
    deltas = generation.deltas_from(0)
    return Output(
        text="".join(deltas),
        delta_lengths=[len(delta) for delta in deltas],
        prompt_tokens=None,
        output_tokens=None,
        finish_reason="error",
        max_output_tokens=claim.sampling.max_output_tokens,
        first_token_after=None,
    )


def _output(completion: Completion, started: float) -> Output:
    first = completion.first_token_at
    return Output(
        text=completion.text,
        delta_lengths=[len(delta) for delta in completion.deltas],
        prompt_tokens=completion.prompt_tokens,
        output_tokens=completion.output_tokens,
        finish_reason=completion.finish_reason.value,
        max_output_tokens=completion.max_output_tokens,
        first_token_after=None if first is None else first - started,
    )


def register(app: Celery, runner: StageRunner) -> None:
    """Give the app its three tasks."""

    def run(job_id: str, stage_index: int) -> None:
        runner.run(job_id, stage_index)

    class Stage(Task):  # type: ignore[type-arg]  # generic for type checkers alone
        """A stage's task, which knows what to do with a next one that Redis refuses."""

        def apply_async(self, *arguments: Any, **options: Any) -> Any:
            try:
                # Celery would try three times, and then count this stage as failed.
                return super().apply_async(*arguments, **{**options, "retry": False})
            except (OperationalError, RedisError) as error:
                if not options.get("retry", True):
                    raise  # a sweep asks for it, which does the rest itself
                job_id, stage_index = arguments[0]
                runner.publish_later(job_id, stage_index, error)

    for role in Role:
        app.task(name=task_name(role), base=Stage)(run)
