"""The Celery tasks of actor, critic and regenerator: claim a stage, generate, record its text."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from celery import Celery, Task
from celery.exceptions import Ignore
from fasteners import ReaderWriterLock
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from jobs import logs, trace_context, transient
from jobs.database import Database
from jobs.pipeline import Role
from jobs.queue import task_name
from jobs.retrying import retry
from jobs.use_cases import outbox, pausing, stages, workers
from jobs.use_cases.stages import DEADLINE_EXCEEDED, Claim, Output, Refusal
from worker.engine.interface import (
    Completion,
    ContextExceededError,
    Engine,
    EngineError,
    FinishReason,
    Generation,
    InterruptedGenerationError,
    Request,
)
from worker.progress_publisher import ProgressPublisher

log = logging.getLogger(__name__)

#: Seconds between two attempts while the database does not respond.
MIN_RETRY_DELAY, MAX_RETRY_DELAY = 0.1, 5.0

#: Attempts at a stage after which a generation that was interrupted fails, instead of running again.
MAX_INTERRUPTED_ATTEMPTS = 5
#: How often a stage is tried to claim: it may have to run exclusively, and the queue may be paused meanwhile.
MAX_CLAIMS = 3
#: Why an attempt ended whose job was cancelled, or taken back by a sweep, before it could be recorded.
LEASE_LOST = "lease_lost"

T = TypeVar("T")


@dataclass(eq=False)
class _Running:
    """A claimed stage that runs here."""

    job_id: str
    lease_token: int
    #: None before the engine has the request.
    generation: Generation | None = None
    is_cancelled: bool = False

    @property
    def key(self) -> tuple[str, int]:
        """What the database knows it by."""
        return self.job_id, self.lease_token

    def cancel(self) -> None:
        """Cancel it, now or as soon as the engine has the request."""
        self.is_cancelled = True
        if self.generation is not None:
            self.generation.cancel()


class StageRunner:
    """Runs stages for the tasks, and keeps track of those that are running. Thread-safe."""

    def __init__(
        self,
        database: Database,
        engine: Engine,
        publisher: ProgressPublisher,
        worker_id: str,
        *,
        job_timeout: float,
        register: Callable[[], object] = lambda: None,
        sends_traces: bool = False,
    ) -> None:
        """
        Args:
            database: of the jobs.
            engine: generates.
            publisher: gets the texts and the changes of jobs.
            worker_id: of this worker.
            job_timeout: seconds that a job may take from its first claim on.
            register: registers this worker again, after the database has lost its row.
            sends_traces: whether the spans of attempts are sent to a receiver, so that those of an engine's server
                belong below them.
        """
        self._register = register
        self._database = database
        self._engine = engine
        self._publisher = publisher
        self._worker_id = worker_id
        self._job_timeout = job_timeout
        #: What runs here, in the order of the claims.
        self._running: list[_Running] = []
        self._sends_traces = sends_traces
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        #: Attempts that ended, by role and reason; see `ended`.
        self._ended: Counter[tuple[Role, str]] = Counter()
        #: A stage that must run exclusively holds it to write, all others to read.
        self._exclusive = ReaderWriterLock()
        #: Those that run exclusively, or wait until they can: (job id, stage index).
        self._exclusive_stages: set[tuple[str, int]] = set()
        #: Stages whose messages threads hold until the queue is resumed, and what they wait for.
        self._held = 0
        self._resumed = threading.Event()
        #: Whether such threads end instead: a sweep publishes their stages again.
        self._draining = threading.Event()

    def run(self, job_id: str, stage_index: int) -> None:
        """Claim and run one stage; return once its output is recorded.

        Raises:
            Ignore: ends the chain: the stage cannot be claimed, or the next one must not follow.
        """
        with logs.bound(job_id=job_id, stage=stage_index):
            self._run(job_id, stage_index)

    def _run(self, job_id: str, stage_index: int) -> None:
        exclusive, tries = False, 0
        while tries < MAX_CLAIMS:
            with self._lock_for(job_id, stage_index, exclusive=exclusive):
                claim = self._claim(job_id, stage_index, exclusive=exclusive)
                if claim is not None:
                    if exclusive:
                        log.warning(
                            "%s: stage %d lost its workers; it runs exclusively",
                            job_id,
                            stage_index,
                        )
                    self._run_claimed(claim)
                    return
            refusal = self.with_retries(
                lambda: stages.why_refused(self._database, job_id, stage_index, self._worker_id)
            )
            if refusal is Refusal.NO_SUCH_JOB:
                log.info("%s: its message is dropped: no such job is in the database", job_id)
                raise Ignore("there is no such job")
            if refusal is Refusal.NOT_READY:
                break
            if refusal is Refusal.PAUSED:
                self._hold(job_id, stage_index)
                continue
            if refusal is Refusal.NOT_REGISTERED:
                self.with_retries(self._register)
            exclusive = refusal is Refusal.NEEDS_EXCLUSIVE_WORKER
            tries += 1
        log.debug("%s: stage %d cannot be claimed", job_id, stage_index)
        raise Ignore("the stage cannot be claimed")

    @contextmanager
    def _lock_for(self, job_id: str, stage_index: int, *, exclusive: bool) -> Iterator[None]:
        """Let a stage run beside others, or exclusively.

        Raises:
            Ignore: another thread waits to run it exclusively.
        """
        if not exclusive:
            with self._exclusive.read_lock():
                yield
            return
        # Those that run may take long, and sweeps publish the stage again meanwhile: each message would take a thread.
        stage = job_id, stage_index
        with self._lock:
            if stage in self._exclusive_stages:
                raise Ignore("another thread waits to run the stage")
            self._exclusive_stages.add(stage)
        try:
            with self._exclusive.write_lock():
                yield
        finally:
            with self._lock:
                self._exclusive_stages.remove(stage)

    def _hold(self, job_id: str, stage_index: int) -> None:
        """Wait until the queue is resumed; then the stage can be claimed.

        While its threads wait, the worker takes no further messages, and so those in Redis keep their order. The
        message of this stage is not in Redis any more: should this process be killed, a sweep publishes the stage
        after the pause.

        Raises:
            Ignore: the worker is stopping.
        """
        self.with_retries(lambda: outbox.mark_unpublished(self._database, job_id, stage_index))
        with self._lock:
            resumed = self._resumed
            self._held += 1
        log.info("%s: stage %d waits: the queue is paused", job_id, stage_index)
        try:
            if not self._draining.is_set():
                resumed.wait()
        finally:
            with self._lock:
                self._held -= 1
        if self._draining.is_set():
            raise Ignore("the worker is stopping")

    def check_pause(self) -> None:
        """Let the stages that are held be claimed, if the queue is not paused any more."""
        if self._held and not pausing.is_paused(self._database):
            self._release_held()

    def drain(self) -> None:
        """Hold no stages any more: the worker is stopping."""
        self._draining.set()
        self._release_held()

    def _release_held(self) -> None:
        with self._lock:
            resumed, self._resumed = self._resumed, threading.Event()
        resumed.set()

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
        running = _Running(job_id, claim.lease_token)
        with self._lock:
            # A database that was set back does not know of its earlier claim, and repeats the token.
            for forgotten in self._running:
                if forgotten.key == running.key:
                    forgotten.cancel()
            self._running.append(running)
        recorded = False
        with logs.bound(**self._fields(claim)):
            try:
                recorded = self._generate_and_record(claim, running)
            except Exception as error:
                # Whatever it is, the stage must not stay in progress while nothing runs it.
                log.exception("%s: a stage failed", job_id)
                recorded = self._fail(claim, "server_error", f"{type(error).__name__}: {error}")
            finally:
                with self._lock:
                    self._running.remove(running)
                self._publisher.publish_change(job_id, ended=recorded and claim.last)
        if not recorded:
            raise Ignore("the chain ends here")

    def _generate_and_record(self, claim: Claim, running: _Running) -> bool:
        """Return whether the text was recorded, so that the next stage follows."""
        start = time.monotonic()
        log.info("%s: %s starts", claim.job_id, claim.stage.role)
        self._publisher.publish_change(claim.job_id)
        try:
            generation = self._engine.submit(
                Request(
                    role=claim.stage.role,
                    prompt=claim.prompt,
                    sampling=claim.sampling,
                    deadline=start + claim.seconds_left,
                    priority=claim.stage.index,
                    trace_headers=self._trace_headers(claim),
                )
            )
        except ContextExceededError as error:
            return self._fail(claim, "context_length_exceeded", str(error))
        self._set_generation(running, generation)
        self._publisher.publish_text(claim.job_id, claim.attempt_id, generation)
        try:
            completion = generation.result()
        except ContextExceededError as error:
            return self._fail(
                claim, "context_length_exceeded", str(error), server=generation.server
            )
        except InterruptedGenerationError as error:
            return self._interrupted(claim, generation, error)
        except EngineError as error:
            message = f"the {claim.stage.role} failed: {error}"
            return self._fail(claim, "server_error", message, _partial_output(claim, generation))
        return self._record(claim, completion, _output(completion, generation, start))

    def _fields(self, claim: Claim) -> dict[str, str | int]:
        """Return what all lines about an attempt have, besides job and stage."""
        fields: dict[str, str | int] = {
            "role": claim.stage.role.value,
            "attempt": claim.attempt_number,
            "attempt_id": claim.attempt_id,
        }
        if claim.traceparent is not None or self._sends_traces:
            fields["trace_id"] = trace_context.of_job(claim.job_id, claim.traceparent).trace_id
        return fields

    def _trace_headers(self, claim: Claim) -> dict[str, str]:
        trace = trace_context.of_attempt(
            claim.job_id,
            claim.number,
            claim.traceparent,
            claim.tracestate,
            is_sent=self._sends_traces,
        )
        return {} if trace is None else trace.headers

    def _record(self, claim: Claim, completion: Completion, output: Output) -> bool:
        """Store the output of a generation; return whether it is the stage's text."""
        if completion.finish_reason is FinishReason.CANCELLED:
            if self._stopping.is_set() and self.with_retries(
                lambda: stages.release(self._database, claim, "the worker shut down", output.server)
            ):
                self._count(claim, "released")
                log.info("%s: %s returns to the queue", claim.job_id, claim.stage.role)
            else:
                self.with_retries(lambda: stages.keep_partial(self._database, claim, output))
                self._count(claim, "cancelled")
                log.info("%s: %s stopped", claim.job_id, claim.stage.role)
            return False
        if completion.finish_reason is FinishReason.DEADLINE:
            return self._fail(claim, "deadline_exceeded", DEADLINE_EXCEEDED, output)
        if not self.with_retries(lambda: stages.record(self._database, claim, output)):
            # The job was cancelled meanwhile, or this worker was considered lost.
            self.with_retries(lambda: stages.keep_partial(self._database, claim, output))
            self._count(claim, LEASE_LOST)
            log.info("%s: %s finished, but its lease was lost", claim.job_id, claim.stage.role)
            return False
        self._count(claim, output.finish_reason)
        log.info(
            "%s: %s finished: %s tokens, %s%s",
            claim.job_id,
            claim.stage.role,
            "unknown" if output.output_tokens is None else output.output_tokens,
            output.finish_reason,
            "" if output.server is None else f", by {output.server}",
        )
        return True

    def _interrupted(
        self, claim: Claim, generation: Generation, error: InterruptedGenerationError
    ) -> bool:
        """Release a stage that its engine lost, so that it runs again; fail it if that was tried before."""
        if claim.attempt_number >= MAX_INTERRUPTED_ATTEMPTS:
            message = (
                f"the {claim.stage.role} failed at its attempt {claim.attempt_number}: {error}"
            )
            return self._fail(claim, "server_error", message, _partial_output(claim, generation))
        server = generation.server
        if self.with_retries(lambda: stages.release(self._database, claim, str(error), server)):
            self._count(claim, "interrupted")
            log.warning("%s: %s runs again: %s", claim.job_id, claim.stage.role, error)
        else:
            output = _partial_output(claim, generation)
            self.with_retries(lambda: stages.keep_partial(self._database, claim, output))
            self._count(claim, LEASE_LOST)
            log.info("%s: %s stopped", claim.job_id, claim.stage.role)
        return False

    def _fail(
        self,
        claim: Claim,
        code: str,
        message: str,
        output: Output | None = None,
        *,
        server: str | None = None,
    ) -> bool:
        if self.with_retries(
            lambda: stages.fail(self._database, claim, code, message, output, server=server)
        ):
            self._count(claim, code)
            log.warning("%s: failed: %s", claim.job_id, message)
        else:
            self.with_retries(lambda: stages.keep_partial(self._database, claim, output))
            self._count(claim, LEASE_LOST)
            log.info("%s: failed after its lease was lost: %s", claim.job_id, message)
        return False

    def _set_generation(self, running: _Running, generation: Generation) -> None:
        """Make a generation known to `cancel_lost` and `stop`."""
        with self._lock:
            running.generation = generation
            if running.is_cancelled or self._stopping.is_set():
                generation.cancel()

    @property
    def running(self) -> list[tuple[str, int]]:
        """The (job id, lease token) pairs of the running stages."""
        with self._lock:
            return [each.key for each in self._running]

    @property
    def ended(self) -> dict[tuple[Role, str], int]:
        """How many attempts ended here, by role and reason: a finish reason, an error's code, or what befell them."""
        with self._lock:
            return dict(self._ended)

    def _count(self, claim: Claim, reason: str) -> None:
        with self._lock:
            self._ended[claim.stage.role, reason] += 1

    def publish_later(self, job_id: str, stage_index: int, error: Exception) -> None:
        """Mark a stage whose message Redis refused as unpublished: the next sweep publishes it."""
        reason = transient.reason(error)
        with logs.bound(job_id=job_id, stage=stage_index):
            log.warning("%s: stage %d is published later: %s", job_id, stage_index, reason)
            self.with_retries(lambda: outbox.mark_unpublished(self._database, job_id, stage_index))

    def cancel_lost(self) -> None:
        """Cancel the generations whose leases are lost: the job was cancelled or taken back by a sweep."""
        with self._lock:
            running = list(self._running)
        if not running:
            return
        held_leases = workers.held_leases(self._database, self._worker_id)
        for each in running:
            if each.generation is not None and each.key not in held_leases:
                each.generation.cancel()

    def stop(self) -> None:
        """Cancel all generations and release their stages. No other stage is claimed."""
        self._stopping.set()
        self.drain()
        with self._lock:
            for each in self._running:
                each.cancel()

    def with_retries(self, call: Callable[[], T]) -> T:
        """Call the database until it responds, so that no finished text is lost; return the result.

        Raises:
            Exception: an error that is not transient, or any error once the runner is stopping.
        """
        return retry(
            call,
            is_transient=transient.is_transient,
            log=log,
            message="the database does not respond, trying again",
            min_delay=MIN_RETRY_DELAY,
            max_delay=MAX_RETRY_DELAY,
            stopping=self._stopping,
        )


def _partial_output(claim: Claim, generation: Generation) -> Output:
    """Return the output of a generation that raised an error: the text before it."""
    deltas = generation.deltas_from(0)
    return Output(
        text="".join(deltas),
        delta_lengths=[len(delta) for delta in deltas],
        prompt_tokens=None,
        output_tokens=None,
        finish_reason="error",
        max_output_tokens=claim.sampling.max_output_tokens,
        first_token_after=None,
        server=generation.server,
    )


def _output(completion: Completion, generation: Generation, start: float) -> Output:
    first = completion.first_token_at
    return Output(
        text=completion.text,
        delta_lengths=[len(delta) for delta in completion.deltas],
        prompt_tokens=completion.prompt_tokens if completion.tokens_known else None,
        output_tokens=completion.output_tokens if completion.tokens_known else None,
        finish_reason=completion.finish_reason.value,
        max_output_tokens=completion.max_output_tokens,
        first_token_after=None if first is None else first - start,
        server=generation.server,
    )


def register(app: Celery, runner: StageRunner) -> None:
    """Register the tasks of the three roles with a Celery app."""

    def run(job_id: str, stage_index: int) -> None:
        # Until the thread takes another message: Celery has something to say of this one after its task.
        logs.begin(job_id=job_id, stage=stage_index)
        runner.run(job_id, stage_index)

    class Stage(Task):  # type: ignore[type-arg]  # generic for type checkers alone
        """A stage's task. If Redis refuses the next stage's message, the sweep publishes it later."""

        def apply_async(self, *arguments: Any, **options: Any) -> Any:
            try:
                # Celery would retry three times, and then fail this stage's task.
                return super().apply_async(*arguments, **{**options, "retry": False})
            except (OperationalError, RedisError) as error:
                if not options.get("retry", True):
                    raise  # Called by a sweep, which handles the error itself.
                job_id, stage_index = arguments[0]
                runner.publish_later(job_id, stage_index, error)

    for role in Role:
        app.task(name=task_name(role), base=Stage)(run)
