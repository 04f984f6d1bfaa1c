"""Records how the attempts at stages ended: with a text, or with the reason why there is none."""

from __future__ import annotations

import logging
import threading
from collections import Counter

from jobs.database import Database
from jobs.pipeline import Role
from jobs.use_cases import stages
from jobs.use_cases.stages import DEADLINE_EXCEEDED, Claim, Output
from worker.database_retries import DatabaseRetries
from worker.engine.interface import (
    Completion,
    FinishReason,
    Generation,
    InterruptedGenerationError,
)

log = logging.getLogger(__name__)

#: Attempts at a stage after which a generation that was interrupted fails, instead of running again.
MAX_INTERRUPTED_ATTEMPTS = 5
#: Why an attempt ended whose job was cancelled, or taken back by a sweep, before it could be recorded.
LEASE_LOST = "lease_lost"


class AttemptRecorder:
    """Stores the ends of attempts, and counts them. Thread-safe."""

    def __init__(
        self, database: Database, stopping: threading.Event, with_retries: DatabaseRetries
    ) -> None:
        """
        Args:
            database: of the jobs.
            stopping: is set before the worker cancels its generations in order to stop.
            with_retries: calls the database.
        """
        self._database = database
        self._stopping = stopping
        self._with_retries = with_retries
        self._lock = threading.Lock()
        #: Attempts that ended, by role and reason; see `ended`.
        self._ended: Counter[tuple[Role, str]] = Counter()

    @property
    def ended(self) -> dict[tuple[Role, str], int]:
        """How many attempts ended here, by role and reason: a finish reason, an error's code, or what else ended them."""
        with self._lock:
            return dict(self._ended)

    def record(self, claim: Claim, completion: Completion, output: Output) -> bool:
        """Store the output of a generation that ended without an error; return whether it is the stage's text."""
        if completion.finish_reason is FinishReason.CANCELLED:
            if not (self._stopping.is_set() and self.release(claim, output)):
                self._with_retries(lambda: stages.keep_partial(self._database, claim, output))
                self._count(claim, "cancelled")
                log.info("%s: %s stopped", claim.job_id, claim.stage.role)
            return False
        if completion.finish_reason is FinishReason.DEADLINE:
            return self.fail(claim, "deadline_exceeded", DEADLINE_EXCEEDED, output)
        if not self._with_retries(lambda: stages.record(self._database, claim, output)):
            # The job was cancelled meanwhile, or this worker was considered lost.
            self._with_retries(lambda: stages.keep_partial(self._database, claim, output))
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

    def release(self, claim: Claim, output: Output | None) -> bool:
        """Give a stage back, since the worker is stopping; return False if its lease is lost.

        Args:
            claim: of the attempt.
            output: what it generated; None if nothing.
        """
        released = self._with_retries(
            lambda: stages.release(self._database, claim, "the worker shut down", output)
        )
        if released:
            self._count(claim, "released")
            log.info("%s: %s returns to the queue", claim.job_id, claim.stage.role)
        return released

    def interrupted(
        self, claim: Claim, generation: Generation, error: InterruptedGenerationError
    ) -> bool:
        """Release a stage that its engine lost, so that it runs again; fail its job after too many attempts.

        Returns False, as `record` does for what is not the stage's text.
        """
        if claim.attempt_number >= MAX_INTERRUPTED_ATTEMPTS:
            message = (
                f"the {claim.stage.role} failed at its attempt {claim.attempt_number}: {error}"
            )
            return self.fail(claim, "server_error", message, partial_output(claim, generation))
        output = partial_output(claim, generation)
        if self._with_retries(lambda: stages.release(self._database, claim, str(error), output)):
            self._count(claim, "interrupted")
            log.warning("%s: %s runs again: %s", claim.job_id, claim.stage.role, error)
        else:
            self._with_retries(lambda: stages.keep_partial(self._database, claim, output))
            self._count(claim, LEASE_LOST)
            log.info("%s: %s stopped", claim.job_id, claim.stage.role)
        return False

    def fail(
        self,
        claim: Claim,
        code: str,
        message: str,
        output: Output | None = None,
        *,
        server: str | None = None,
    ) -> bool:
        """Fail a job, with the text of its attempt so far if there is any; return False, as `record` does.

        Args:
            claim: of the attempt.
            code: of the error, as the API shows it.
            message: the reason.
            output: what the attempt generated; None if nothing is known of it.
            server: the address of the server that ran it, if there is no output to say so.
        """
        if self._with_retries(
            lambda: stages.fail(self._database, claim, code, message, output, server=server)
        ):
            self._count(claim, code)
            log.warning("%s: failed: %s", claim.job_id, message)
        else:
            self._with_retries(lambda: stages.keep_partial(self._database, claim, output))
            self._count(claim, LEASE_LOST)
            log.info("%s: failed after its lease was lost: %s", claim.job_id, message)
        return False

    def _count(self, claim: Claim, reason: str) -> None:
        with self._lock:
            self._ended[claim.stage.role, reason] += 1


def partial_output(claim: Claim, generation: Generation) -> Output:
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


def completed_output(completion: Completion, generation: Generation, start: float) -> Output:
    """Return the output of a generation that ended without an error.

    Args:
        completion: its result.
        generation: that has ended.
        start: when the stage started, in seconds on the clock of `time.monotonic`.
    """
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
