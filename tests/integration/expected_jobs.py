"""What becomes of a job, in plain Python: `test_any_order` compares the database with it.

It says in one place what docs/reliability.md promises, without SQL, time or concurrency. A lease is held or not, and
has run out or not; a deadline is ahead or past.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from jobs.models import AttemptStatus, Status
from jobs.use_cases.stages import Claim

#: The number of lost workers after which a job fails, and after which its stage runs beside no other.
MAX_LOST, EXCLUSIVE_AFTER = 3, 2
#: A deadline: ahead, past, and past by so long that the worker should have ended the job.
AHEAD, PAST, LONG_PAST = range(3)


@dataclass
class ExpectedAttempt:
    """An attempt at a stage."""

    stage_index: int
    run: int
    number: int
    worker_id: str
    status: AttemptStatus = AttemptStatus.RUNNING
    #: Whether the job was retried after it began.
    before_retry: bool = False


@dataclass
class ExpectedJob:
    """A job, and everything that happened to it."""

    rounds: int
    status: Status = Status.QUEUED
    stage_index: int = 0
    run: int = 1
    #: Who holds the lease. The attempts count the leases: the last one is the holder's.
    worker_id: str | None = None
    lease_ran_out: bool = False
    model: str | None = None
    deadline: int | None = None
    #: Whether its next stage has a message.
    is_published: bool = True
    error_code: str | None = None
    was_erased: bool = False
    attempts: list[ExpectedAttempt] = field(default_factory=list)

    @property
    def lost(self) -> int:
        """How many attempts at its stage were lost since the last retry."""
        return sum(
            each.stage_index == self.stage_index
            and each.status is AttemptStatus.LOST
            and not each.before_retry
            for each in self.attempts
        )

    @property
    def waits(self) -> bool:
        """Whether a stage waits for a worker."""
        return not self.status.final and self.worker_id is None

    def may_be_claimed(self, stage_index: int, model: str, *, exclusive: bool) -> bool:
        """Return whether a worker with a model gets a stage."""
        return (
            self.waits
            and stage_index == self.stage_index
            and self.model in (None, model)
            and self.deadline in (None, AHEAD)
            and (exclusive or self.lost < EXCLUSIVE_AFTER)
        )

    def is_held(self, claim: Claim) -> bool:
        """Return whether a claim's lease is held, whether or not the job has ended."""
        return self.worker_id is not None and claim.lease_token == len(self.attempts)

    def runs(self, claim: Claim) -> bool:
        """Return whether the job goes on with a claim's stage."""
        return not self.status.final and self.is_held(claim)

    def has_recorded(self, claim: Claim) -> bool:
        """Return whether a claim's text was recorded."""
        return self.attempts[claim.number].status is AttemptStatus.FINISHED

    def check(self) -> None:
        """Check what must hold whatever happened."""
        running = [each for each in self.attempts if each.status is AttemptStatus.RUNNING]
        assert running == ([] if self.worker_id is None else [self.attempts[-1]])
        finished = [
            (each.run, each.stage_index)
            for each in self.attempts
            if each.status is AttemptStatus.FINISHED
        ]
        # No stage is run again that has finished.
        assert finished == sorted(set(finished))

    def claim(self, worker_id: str, model: str) -> None:
        self.status = Status.IN_PROGRESS
        self.worker_id, self.lease_ran_out, self.model = worker_id, False, model
        self.deadline = AHEAD if self.deadline is None else self.deadline
        number = 1 + sum(each.stage_index == self.stage_index for each in self.attempts)
        self.attempts.append(ExpectedAttempt(self.stage_index, self.run, number, worker_id))

    def _give_back(self, status: AttemptStatus) -> None:
        self.worker_id, self.lease_ran_out = None, False
        self.attempts[-1].status = status

    def record(self, *, is_cut: bool) -> None:
        self._give_back(AttemptStatus.FINISHED)
        self.stage_index += 1
        self.is_published = True  # The worker's chain goes on.
        if self.stage_index == 2 * self.rounds + 1:
            self.status = Status.INCOMPLETE if is_cut else Status.COMPLETED

    def fail(self, code: str) -> None:
        self._give_back(AttemptStatus.FAILED)
        self._end_as_failed(code)

    def release(self) -> None:
        self._give_back(AttemptStatus.RELEASED)
        self.is_published = False

    def keep_partial(self) -> None:
        """End the attempt of a job that had ended."""
        is_cancelled = self.status is Status.CANCELLED
        self._give_back(AttemptStatus.CANCELLED if is_cancelled else AttemptStatus.FAILED)

    def sweep(self, *, is_paused: bool) -> None:
        if self.worker_id is not None and self.lease_ran_out:
            if self.status.final:
                self.keep_partial()
            else:
                self._give_back(AttemptStatus.LOST)
                self.is_published = False
                if self.lost >= MAX_LOST:
                    self._end_as_failed("worker_lost")
        if self.status is not Status.IN_PROGRESS:
            return
        if self.worker_id is None:
            is_overdue = self.deadline in (PAST, LONG_PAST) and not is_paused
        else:
            is_overdue = self.deadline == LONG_PAST
        if is_overdue:
            self._end_as_failed("deadline_exceeded")

    def _end_as_failed(self, code: str) -> None:
        self.status, self.error_code = Status.FAILED, code

    def cancel(self) -> None:
        if not self.status.final:
            self.status = Status.CANCELLED

    @property
    def may_be_retried(self) -> bool:
        return self.status is Status.FAILED and self.worker_id is None and not self.was_erased

    @property
    def may_be_replayed(self) -> bool:
        finished = [each for each in self.attempts if each.status is AttemptStatus.FINISHED]
        return any(each.run == self.run for each in finished) and not self.was_erased

    def retry(self) -> None:
        self.status = Status.IN_PROGRESS if self.attempts else Status.QUEUED
        self.deadline, self.error_code, self.is_published = None, None, True
        for each in self.attempts:
            each.before_retry = True

    def restart(self) -> None:
        self.run += 1
        self.stage_index, self.model, self.is_published = 0, None, False
