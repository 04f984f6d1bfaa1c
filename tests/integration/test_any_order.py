"""Whatever happens to jobs, in any order: the database has what `ExpectedJob` says, and every job ends.

hypothesis chooses what happens, and shortens an order that fails. ``--orders`` tries more of them.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from jobs.database import Database
from jobs.database_clock import utcnow
from jobs.errors import (
    ErasedError,
    NotEndedError,
    NothingToReplayError,
    NotRetriableError,
    NotSealedError,
)
from jobs.models import ANONYMOUS, Attempt, AttemptStatus, Job, Status, Worker, WorkerState
from jobs.protocol.history import history
from jobs.timing import LEASE
from jobs.use_cases import (
    cancellation,
    deletion,
    erasing,
    indexing,
    outbox,
    pausing,
    queries,
    replaying,
    restarting,
    retrying,
    reviewing,
    sealing,
    stages,
    submission,
    sweeping,
    workers,
)
from jobs.use_cases.log_signing import Signing
from jobs.use_cases.reviewing import NewReview
from jobs.use_cases.stages import Claim, Refusal
from jobs.use_cases.submission import NewJob
from jobs.use_cases.sweeping import DEADLINE_GRACE
from jobs.use_cases.verifying import verify
from tests.conftest import RUNTIME
from tests.integration.expected_jobs import (
    AHEAD,
    EXCLUSIVE_AFTER,
    LONG_PAST,
    PAST,
    ExpectedJob,
)
from tests.integration.rows import OUTPUT, QUESTION
from tests.integration.test_rollups import OTHER, check, count

#: The workers, and what they serve. Two have the same model.
RUNTIMES = {"worker-1": RUNTIME, "worker-2": RUNTIME, "worker-3": OTHER}
#: Seconds that a stage waits for a worker with its job's model.
MODEL_TIMEOUT = 60.0
#: Where a deadline is, in seconds from now.
DEADLINES = {AHEAD: 3600.0, PAST: -1.0, LONG_PAST: -DEADLINE_GRACE - 1}

#: So few that most of what happens, happens to the same one.
MAX_JOBS = 3
#: Which of the jobs, claims or workers there are.
which = st.integers(0, 11)
worker_ids = st.sampled_from(list(RUNTIMES))


class Orders(RuleBasedStateMachine):
    """Everything that can happen to jobs, one thing after another."""

    database: Database

    def __init__(self) -> None:
        super().__init__()
        self.jobs: dict[str, ExpectedJob] = {}
        #: Everything that was ever claimed: workers may come back with it at any time.
        self.claims: list[Claim] = []
        self.is_paused = False
        self.alive = set(RUNTIMES)
        pausing.resume(self.database, "ann")
        with self.database.read() as connection:
            of_a_failure = connection.scalars(sa.select(Job.id)).all()
        for job_id in of_a_failure:
            deletion.delete(self.database, ANONYMOUS, job_id)

    def any_job(self, number: int) -> tuple[str, ExpectedJob]:
        return list(self.jobs.items())[number % len(self.jobs)]

    def any_claim(self, number: int) -> tuple[Claim, ExpectedJob | None]:
        """Return a claim, a late one rather than an early one, and its job, if that was not deleted."""
        claim = self.claims[-1 - number % len(self.claims)]
        return claim, self.jobs.get(claim.job_id)

    def set_times(self) -> None:
        """Set the times that are compared with now to what is expected, however long this takes."""
        for job_id, job in self.jobs.items():
            values: dict[object, object] = {}
            if job.worker_id is not None:
                values[Job.lease_expires_at] = utcnow(-1 if job.lease_ran_out else LEASE)
            if job.deadline is not None and not job.status.final:  # The log has it.
                values[Job.deadline_at] = utcnow(DEADLINES[job.deadline])
            if job.is_published:
                values[Job.published_at] = utcnow()
            if values:
                with self.database.write() as connection:
                    connection.execute(sa.update(Job).where(Job.id == job_id).values(values))

    @precondition(lambda self: len(self.jobs) < MAX_JOBS)
    @rule(rounds=st.sampled_from([1, 1, 2]))
    def submit(self, rounds: int, new: NewJob = QUESTION) -> None:
        new = replace(new, rounds=rounds)
        job, _ = submission.submit(self.database, ANONYMOUS, new, max_queued=1000)
        self.jobs[job.id] = ExpectedJob(rounds)

    @precondition(lambda self: self.jobs)
    @rule(
        number=which,
        worker_id=worker_ids,
        exclusive=st.booleans(),
        off=st.sampled_from([0, 0, 0, 0, -1, 1]),
    )
    def claim(self, number: int, worker_id: str, exclusive: bool, off: int) -> None:
        job_id, job = self.any_job(number)
        stage_index, model = max(job.stage_index + off, 0), RUNTIMES[worker_id].model
        self.set_times()
        claimed = stages.claim(
            self.database, job_id, stage_index, worker_id, job_timeout=3600, exclusive=exclusive
        )
        expected = not self.is_paused and job.may_be_claimed(
            stage_index, model, exclusive=exclusive
        )
        assert (claimed is not None) == expected
        if claimed is None:
            refusal = stages.why_refused(self.database, job_id, stage_index, worker_id)
            assert refusal is self.refusal(job, stage_index)
            return
        job.claim(worker_id, model)
        self.claims.append(claimed)
        attempt = job.attempts[-1]
        assert (claimed.number, claimed.attempt_number) == (len(job.attempts) - 1, attempt.number)
        assert claimed.last == (stage_index == 2 * job.rounds)
        assert stages.find_claim(self.database, job_id, stage_index, worker_id) is not None

    def refusal(self, job: ExpectedJob, stage_index: int) -> Refusal:
        if not job.waits or stage_index != job.stage_index:
            return Refusal.NOT_READY
        if self.is_paused:
            return Refusal.PAUSED
        return Refusal.NEEDS_EXCLUSIVE_WORKER if job.lost >= EXCLUSIVE_AFTER else Refusal.OTHER

    @precondition(lambda self: self.claims)
    @rule(number=which, is_cut=st.booleans())
    def record(self, number: int, is_cut: bool) -> None:
        claim, job = self.any_claim(number)
        output = replace(OUTPUT, finish_reason="length") if is_cut else OUTPUT
        recorded = stages.record(self.database, claim, output)
        if job is not None and job.runs(claim):
            job.record(is_cut=is_cut)
            assert recorded
        else:
            # The same again is no error: the reply of the first time may have been lost.
            assert recorded == (job is not None and job.has_recorded(claim))

    @precondition(lambda self: self.claims)
    @rule(number=which, has_text=st.booleans())
    def fail(self, number: int, has_text: bool) -> None:
        claim, job = self.any_claim(number)
        output = OUTPUT if has_text else None
        failed = stages.fail(self.database, claim, "server_error", "why", output)
        assert failed == (job is not None and job.runs(claim))
        if job is not None and failed:
            job.fail("server_error")

    @precondition(lambda self: self.claims)
    @rule(number=which, has_text=st.booleans())
    def release(self, number: int, has_text: bool) -> None:
        claim, job = self.any_claim(number)
        released = stages.release(self.database, claim, "why", OUTPUT if has_text else None)
        assert released == (job is not None and job.runs(claim))
        if job is not None and released:
            job.release()

    @precondition(lambda self: self.claims)
    @rule(number=which, has_text=st.booleans())
    def keep_partial(self, number: int, has_text: bool) -> None:
        claim, job = self.any_claim(number)
        stages.keep_partial(self.database, claim, OUTPUT if has_text else None)
        if job is not None and job.status.final and job.is_held(claim):
            job.keep_partial()

    @rule(worker_id=worker_ids)
    def heartbeat(self, worker_id: str) -> None:
        """A worker lives, and is running all that it ever claimed."""
        self.alive.add(worker_id)
        own = [claim for claim in self.claims if claim.worker_id == worker_id]
        running = [(claim.job_id, claim.lease_token) for claim in own]
        assert workers.heartbeat(self.database, worker_id, running)
        held = {
            (job_id, len(job.attempts)): job
            for job_id, job in self.jobs.items()
            if job.worker_id == worker_id
        }
        for job in held.values():
            job.lease_ran_out = False
        going_on = {lease for lease, job in held.items() if not job.status.final}
        assert workers.held_leases(self.database, worker_id) == going_on

    @rule(worker_id=worker_ids)
    def lose_worker(self, worker_id: str) -> None:
        self.alive.discard(worker_id)
        for job in self.jobs.values():
            job.lease_ran_out |= job.worker_id == worker_id

    @precondition(lambda self: self.jobs)
    @rule(number=which, worker_id=worker_ids, times=st.integers(1, 3))
    def crash(self, number: int, worker_id: str, times: int) -> None:
        """A stage brings its worker down, which ends its job at the third time."""
        _, job = self.any_job(number)
        for _ in range(times):
            self.claim(number, worker_id, exclusive=True, off=0)
            job.lease_ran_out |= job.worker_id is not None
            self.sweep()

    @rule()
    def sweep(self) -> None:
        self.set_times()
        sweeping.sweep(self.database)
        for job in self.jobs.values():
            job.sweep(is_paused=self.is_paused)

    @precondition(lambda self: self.jobs)
    @rule(number=which, deadline=st.sampled_from([PAST, LONG_PAST]))
    def pass_deadline(self, number: int, deadline: int) -> None:
        _, job = self.any_job(number)
        if job.deadline is not None:
            job.deadline = deadline

    @rule(model=st.sampled_from([RUNTIME.model, OTHER.model]))
    def publish(self, model: str) -> None:
        self.set_times()
        taken = outbox.take_unpublished(self.database, queue_empty=False, model=model)
        expected = {
            job_id: job
            for job_id, job in self.jobs.items()
            if job.waits and not job.is_published and job.model in (None, model)
        }
        if self.is_paused:
            expected = {}
        assert {each.job_id for each in taken} == set(expected)
        assert len(taken) == len(expected)
        for each in taken:
            assert each.stage_index == expected[each.job_id].stage_index
            expected[each.job_id].is_published = True

    @precondition(lambda self: self.jobs)
    @rule(number=which)
    def mark_unpublished(self, number: int) -> None:
        job_id, job = self.any_job(number)
        outbox.mark_unpublished(self.database, job_id, job.stage_index)
        if job.worker_id is None:
            job.is_published = False

    @rule(gone=st.sampled_from([None, RUNTIME.model, OTHER.model]))
    def restart(self, gone: str | None) -> None:
        """Stages have waited for a worker with their model for long. Those with one model may have gone."""
        self.alive -= {each for each in self.alive if RUNTIMES[each].model == gone}
        long_ago = utcnow(-2 * MODEL_TIMEOUT)
        with self.database.write() as connection:
            unfinished = sa.update(Job).where(Job.finished_at.is_(None))
            connection.execute(unfinished.values(ready_at=long_ago))
            seen_at = sa.case((Worker.id.in_(self.alive), utcnow()), else_=long_ago)
            connection.execute(sa.update(Worker).values(seen_at=seen_at))
        restarted = restarting.restart_jobs(self.database, MODEL_TIMEOUT)
        present = {RUNTIMES[worker_id].model for worker_id in self.alive}
        expected = {
            job_id: job
            for job_id, job in self.jobs.items()
            if job.status is Status.IN_PROGRESS
            and job.waits
            and job.model not in (None, *present)
            and present
        }
        assert set(restarted) == set(expected)
        for job in expected.values():
            job.restart()

    @precondition(lambda self: self.jobs)
    @rule(number=which)
    def cancel(self, number: int) -> None:
        job_id, job = self.any_job(number)
        cancellation.cancel(self.database, ANONYMOUS, job_id)
        job.cancel()

    @precondition(lambda self: self.jobs)
    @rule(number=which)
    def retry(self, number: int) -> None:
        failed = [job_id for job_id, job in self.jobs.items() if job.may_be_retried]
        job_id, job = self.any_job(number)
        if failed and not job.may_be_retried:
            job_id = failed[number % len(failed)]
            job = self.jobs[job_id]
        if job.may_be_retried:
            retrying.retry(self.database, ANONYMOUS, job_id)
            job.retry()
        else:
            with pytest.raises(NotRetriableError):
                retrying.retry(self.database, ANONYMOUS, job_id)

    @precondition(lambda self: self.jobs)
    @rule(number=which)
    def delete(self, number: int) -> None:
        job_id, _ = self.any_job(number)
        deletion.delete(self.database, ANONYMOUS, job_id)
        del self.jobs[job_id]

    @rule()
    def seal(self) -> None:
        while prepared := sealing.prepare(self.database, history):
            sealing.append(self.database, prepared, Signing())

    @precondition(lambda self: self.jobs)
    @rule(number=which)
    def erase(self, number: int) -> None:
        job_id, job = self.any_job(number)
        self.seal()
        if job.status.final and job.worker_id is None:
            erasing.erase(self.database, ANONYMOUS, job_id, history, None, erased_by="ann")
            job.was_erased = True
        else:
            error = NotSealedError if job.status.final else NotEndedError
            with pytest.raises(error):
                erasing.erase(self.database, ANONYMOUS, job_id, history, None, erased_by="ann")

    @precondition(lambda self: self.jobs)
    @rule(number=which, rating=st.sampled_from([None, -1, 0, 1]))
    def review(self, number: int, rating: int | None) -> None:
        job_id, job = self.any_job(number)
        review = NewReview(critique=rating, regeneration=rating, note="why")
        if job.status.final:
            reviewing.add(self.database, ANONYMOUS, job_id, review, reviewer="bob")
        else:
            with pytest.raises(NotEndedError):
                reviewing.add(self.database, ANONYMOUS, job_id, review, reviewer="bob")

    @precondition(lambda self: self.jobs)
    @rule(number=which)
    def replay(self, number: int) -> None:
        job_id, expected = self.any_job(number)
        job = queries.get_job(self.database, ANONYMOUS, job_id, with_history=True)
        if expected.may_be_replayed and len(self.jobs) < MAX_JOBS:
            self.submit(expected.rounds, new=replaying.replay_of(job))
        elif not expected.may_be_replayed:
            with pytest.raises((NothingToReplayError, ErasedError)):
                replaying.replay_of(job)

    @rule()
    def index(self) -> None:
        indexing.put(self.database, indexing.prepare(self.database, limit=2))

    @rule(is_paused=st.booleans())
    def pause(self, is_paused: bool) -> None:
        if is_paused:
            pausing.pause(self.database, "ann", None)
        else:
            pausing.resume(self.database, "ann")
        self.is_paused = is_paused

    @invariant()
    def the_database_has_what_is_expected(self) -> None:
        with self.database.read() as connection:
            jobs = connection.execute(
                sa.select(
                    Job.id,
                    Job.status,
                    Job.stage_index,
                    Job.run,
                    Job.lease_token,
                    Job.worker_id,
                    Job.model,
                    Job.error_code,
                    Job.published_at.is_not(None),
                    Job.finished_at.is_not(None),
                    Job.lease_expires_at.is_not(None),
                )
            ).all()
            attempts = connection.execute(
                sa.select(
                    Attempt.job_id,
                    Attempt.lease_token,
                    Attempt.stage_index,
                    Attempt.run,
                    Attempt.number,
                    Attempt.worker_id,
                    Attempt.status,
                    Attempt.finished_at.is_not(None),
                ).order_by(Attempt.id)
            ).all()
        assert {tuple(row) for row in jobs} == {
            (
                job_id,
                job.status,
                job.stage_index,
                job.run,
                len(job.attempts),
                job.worker_id,
                job.model,
                job.error_code,
                job.is_published,
                job.status.final,
                job.worker_id is not None,
            )
            for job_id, job in self.jobs.items()
        }
        assert {tuple(row) for row in attempts} == {
            (
                job_id,
                token,
                attempt.stage_index,
                attempt.run,
                attempt.number,
                attempt.worker_id,
                attempt.status,
                attempt.status is not AttemptStatus.RUNNING,
            )
            for job_id, job in self.jobs.items()
            for token, attempt in enumerate(job.attempts, 1)
        }
        for job in self.jobs.values():
            job.check()

    def teardown(self) -> None:
        """Let all jobs end, and look at what is left of them."""
        self.pause(is_paused=False)
        for worker_id in RUNTIMES:
            self.lose_worker(worker_id)
        for _ in range(2):
            self.sweep()
        for number, (_, job) in enumerate(list(self.jobs.items())):
            while job.waits:
                model = job.model or RUNTIME.model
                worker_id = "worker-3" if model == OTHER.model else "worker-1"
                self.claim(number, worker_id, exclusive=True, off=0)
                self.record(0, is_cut=False)
        self.the_database_has_what_is_expected()
        count(self.database)
        assert check(self.database) == len(self.jobs)
        self.seal()
        assert verify(self.database, history).unsealed == 0
        for job_id in self.jobs:
            deletion.delete(self.database, ANONYMOUS, job_id)
        assert check(self.database) == 0


def test_the_database_has_what_is_expected_in_any_order(
    database: Database, request: pytest.FixtureRequest
) -> None:
    for worker_id in sorted(RUNTIMES.keys() - {"worker-1"}):
        workers.register(database, worker_id, "localhost", 2, RUNTIMES[worker_id])
    for worker_id in RUNTIMES:
        workers.set_state(database, worker_id, WorkerState.READY)
    Orders.database = database
    run_state_machine_as_test(
        Orders,
        settings=settings(
            max_examples=request.config.getoption("--orders"),
            stateful_step_count=50,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
