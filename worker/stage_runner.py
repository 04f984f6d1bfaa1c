"""Runs the stages whose messages a worker gets: claims a stage, generates its text, and has it recorded."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from celery.exceptions import Ignore

from jobs import logs, trace_context, transient
from jobs.database import Database
from jobs.pipeline import Role
from jobs.use_cases import outbox, pausing, stages, workers
from jobs.use_cases.stages import Claim, Output, Refusal
from worker.attempt_recorder import AttemptRecorder, completed_output, partial_output
from worker.database_retries import DatabaseRetries
from worker.engine.interface import (
    ContextExceededError,
    Engine,
    EngineError,
    Generation,
    InterruptedGenerationError,
    Request,
)
from worker.progress_publisher import ProgressPublisher
from worker.waiting_stages import ExclusiveStages, HeldStages

log = logging.getLogger(__name__)

#: The maximum number of tries to claim a stage: the worker may first have to register again, and the stage may have to
#: run exclusively. Waiting for the end of a pause is no try.
MAX_CLAIMS = 3


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
        """What identifies it in the database."""
        return self.job_id, self.lease_token

    def output(self, claim: Claim) -> Output | None:
        """Return its text so far; None if the engine did not get the request."""
        return None if self.generation is None else partial_output(claim, self.generation)

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
        #: Calls the database until it responds, or until this worker stops.
        self.with_retries = DatabaseRetries(self._stopping)
        self._recorder = AttemptRecorder(database, self._stopping, self.with_retries)
        self._held = HeldStages()
        self._exclusive = ExclusiveStages()

    def run(self, job_id: str, stage_index: int) -> None:
        """Claim and run one stage; return once its output is recorded.

        Raises:
            Ignore: ends the chain: the stage cannot be claimed, or the next one must not follow.
        """
        with logs.bound(job_id=job_id, stage=stage_index):
            try:
                self._run(job_id, stage_index)
            except Exception as error:
                if not transient.is_transient(error):
                    raise
                # This worker is stopping, and does not wait for the database. Nobody has claimed the stage, or the
                # lease of a claim whose reply was lost expires: a sweep publishes it again.
                reason = transient.reason(error)
                log.warning("%s: stage %d is left to a sweep: %s", job_id, stage_index, reason)
                raise Ignore("the worker is stopping") from error

    def _run(self, job_id: str, stage_index: int) -> None:
        exclusive, tries = False, 0
        while tries < MAX_CLAIMS:
            with self._exclusive.lock(job_id, stage_index, exclusive=exclusive):
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

    def _hold(self, job_id: str, stage_index: int) -> None:
        """Wait until the queue is resumed; then the stage can be claimed.

        The message of this stage is not in Redis any more: should this process be killed, a sweep publishes the stage
        after the pause.

        Raises:
            Ignore: the worker is stopping.
        """
        self._mark_unpublished(job_id, stage_index)
        self._held.hold(job_id, stage_index)

    def _mark_unpublished(self, job_id: str, stage_index: int) -> None:
        """Have a sweep publish a stage."""
        self.with_retries(lambda: outbox.mark_unpublished(self._database, job_id, stage_index))

    def check_pause(self) -> None:
        """Let the stages that are held be claimed, if the queue is not paused any more."""
        if self._held.count and not pausing.is_paused(self._database):
            self._held.release()

    def drain(self) -> None:
        """Hold no stages any more: the worker is stopping, and a sweep publishes them again."""
        self._held.drain()

    def _claim(self, job_id: str, stage_index: int, *, exclusive: bool = False) -> Claim | None:
        if self._stopping.is_set():
            self._mark_unpublished(job_id, stage_index)
            raise Ignore("the worker is stopping")
        tries = 0

        def claim() -> Claim | None:
            nonlocal tries
            tries += 1
            claimed = stages.claim(
                self._database,
                job_id,
                stage_index,
                self._worker_id,
                job_timeout=self._job_timeout,
                exclusive=exclusive,
            )
            # If only the reply to an earlier try was lost, its lease would expire, and count as a crash of this worker.
            return (
                self._find_lost_claim(job_id, stage_index)
                if claimed is None and tries > 1
                else claimed
            )

        return self.with_retries(claim)

    def _find_lost_claim(self, job_id: str, stage_index: int) -> Claim | None:
        """Return a claim of this worker on a stage that nothing here runs."""
        claim = stages.find_claim(self._database, job_id, stage_index, self._worker_id)
        return None if claim is None or (job_id, claim.lease_token) in self.running else claim

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
                if transient.is_transient(error):
                    # The database does not respond, and this worker is stopping: it does not wait for it.
                    log.warning("%s: its text is not recorded: %s", job_id, transient.reason(error))
                    self._recorder.release(claim, running.output(claim))
                else:
                    log.exception("%s: a stage failed", job_id)
                    recorded = self._recorder.fail(
                        claim,
                        "server_error",
                        f"{type(error).__name__}: {error}",
                        running.output(claim),
                    )
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
            return self._recorder.fail(claim, "context_length_exceeded", str(error))
        self._set_generation(running, generation)
        self._publisher.publish_text(claim.job_id, claim.text_id, generation)
        try:
            completion = generation.result()
        except ContextExceededError as error:
            return self._recorder.fail(
                claim, "context_length_exceeded", str(error), server=generation.server
            )
        except InterruptedGenerationError as error:
            return self._recorder.interrupted(claim, generation, error)
        except EngineError as error:
            message = f"the {claim.stage.role} failed: {error}"
            return self._recorder.fail(
                claim, "server_error", message, partial_output(claim, generation)
            )
        return self._recorder.record(
            claim, completion, completed_output(completion, generation, start)
        )

    def _fields(self, claim: Claim) -> dict[str, str | int]:
        """Return the fields of all log lines about an attempt, besides job and stage."""
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
        """How many attempts ended here, by role and reason: a finish reason, an error's code, or what else ended them."""
        return self._recorder.ended

    def publish_later(self, job_id: str, stage_index: int, error: Exception) -> None:
        """Mark a stage whose message Redis refused as unpublished: the next sweep publishes it."""
        reason = transient.reason(error)
        with logs.bound(job_id=job_id, stage=stage_index):
            log.warning("%s: stage %d is published later: %s", job_id, stage_index, reason)
            self._mark_unpublished(job_id, stage_index)

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
