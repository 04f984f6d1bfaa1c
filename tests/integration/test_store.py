"""Jobs and attempts in the database, on SQLite and on PostgreSQL."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs.database import Database
from jobs.errors import CursorError, IdempotencyError, JobNotFoundError, QueueFullError
from jobs.models import ANONYMOUS, AttemptStatus, Status, Worker, WorkerState
from jobs.page_request import PageRequest
from jobs.pipeline import stage_seed
from jobs.statements import leases
from jobs.statements import workers as workers_statements
from jobs.use_cases import cancellation, queries, stages, submission, sweeping, workers
from jobs.use_cases.requests import Keyed
from jobs.use_cases.stages import Claim
from jobs.use_cases.submission import JobRequest, NewJob
from tests.conftest import RUNTIME, WORKER
from tests.integration.rows import OUTPUT, QUESTION, claim, let_leases_run_out, submit
from tests.servers import PATIENCE


def test_a_job_goes_through_its_three_stages(database: Database) -> None:
    job = submit(database)
    assert (job.status, job.stage_index) == (Status.QUEUED, 0)
    for stage_index, text in enumerate(["an answer", "a critique", "a better answer"]):
        claimed = claim(database, job, stage_index)
        assert claimed.sampling.seed == stage_seed(7, stage_index)
        assert claimed.last == (stage_index == 2)
        output = replace(OUTPUT, text=text, delta_lengths=[len(text)])
        assert stages.record(database, claimed, output)
    stored = queries.get_job(database, ANONYMOUS, job.id)
    assert (stored.status, stored.stage_index) == (Status.COMPLETED, 3)
    assert [a.output for a in stored.finished] == ["an answer", "a critique", "a better answer"]
    assert stored.finished[2].prompt == (
        "SYSTEM: Be brief. \nUSER: Why? \nRESPONSE: an answer \nCRITIQUE: a critique \nREGENERATOR:"
    )
    assert claimed.prompt == stored.finished[2].prompt
    assert stored.attempts[claimed.number].id == claimed.attempt_id
    assert stored.metadata_ == {"team": "blue"}
    for attempt in stored.attempts:
        assert attempt.status is AttemptStatus.FINISHED
        assert attempt.worker.runtime == RUNTIME.description
        assert attempt.finished_at is not None
        assert attempt.first_token_at is not None
        times = [attempt.queued_at, attempt.started_at, attempt.first_token_at]
        assert times == sorted(times)
    assert stored.started_at is not None
    assert stored.finished_at is not None
    assert stored.created_at <= stored.started_at <= stored.finished_at
    assert stored.finished_at == stored.attempts[-1].finished_at


def test_a_claim_whose_reply_was_lost_is_found_by_its_worker_while_the_job_is_open(
    database: Database,
) -> None:
    workers.register(database, "worker-2", "localhost", 2, RUNTIME)
    job = submit(database)
    claimed = claim(database, job)
    found = stages.find_claim(database, job.id, 0, WORKER)
    assert found is not None
    assert found.started_at >= claimed.started_at
    now = {"started_at": claimed.started_at, "seconds_left": claimed.seconds_left}
    assert replace(found, **now) == claimed  # type: ignore[arg-type]  # of these fields
    assert stages.find_claim(database, job.id, 0, "worker-2") is None
    assert stages.find_claim(database, job.id, 1, WORKER) is None
    cancellation.cancel(database, ANONYMOUS, job.id)
    assert stages.find_claim(database, job.id, 0, WORKER) is None


def test_an_answer_cut_at_its_limit_is_incomplete(database: Database) -> None:
    job = submit(database)
    for stage_index in range(3):
        assert stages.record(
            database, claim(database, job, stage_index), replace(OUTPUT, finish_reason="length")
        )
    assert queries.get_job(database, ANONYMOUS, job.id).status is Status.INCOMPLETE


def test_concurrent_claims_give_one_lease(database: Database) -> None:
    job = submit(database)
    start = threading.Barrier(8, timeout=PATIENCE)

    def try_to_claim(_: int) -> Claim | None:
        start.wait()
        return stages.claim(database, job.id, 0, WORKER, job_timeout=60)

    with ThreadPoolExecutor(8) as pool:
        claims = [claimed for claimed in pool.map(try_to_claim, range(8)) if claimed]
    assert len(claims) == 1
    assert len(queries.get_job(database, ANONYMOUS, job.id).attempts) == 1


def test_duplicate_and_early_messages_claim_nothing(database: Database) -> None:
    job = submit(database)
    assert stages.claim(database, job.id, 1, WORKER, job_timeout=60) is None
    assert stages.record(database, claim(database, job), OUTPUT)
    assert stages.claim(database, job.id, 0, WORKER, job_timeout=60) is None
    assert stages.claim(database, "resp_unknown", 0, WORKER, job_timeout=60) is None


def test_a_lost_lease_cannot_record(database: Database) -> None:
    job = submit(database)
    late = claim(database, job)
    let_leases_run_out(database)
    assert sweeping.sweep(database).taken_back == [job.id]
    assert not stages.record(database, late, OUTPUT)
    second_claim = claim(database, job)
    assert not stages.record(database, late, OUTPUT)
    assert not stages.fail(database, late, "server_error", "too late")
    assert not stages.release(database, late, "too late")
    assert stages.record(database, second_claim, OUTPUT)
    first, second = queries.get_job(database, ANONYMOUS, job.id).attempts
    assert (first.status, first.number, first.output) == (AttemptStatus.LOST, 1, None)
    assert (second.status, second.number) == (AttemptStatus.FINISHED, 2)
    assert first.seed == second.seed


def test_a_failed_stage_ends_the_job_with_the_reason(database: Database) -> None:
    job = submit(database)
    assert stages.fail(database, claim(database, job), "server_error", "out of\0memory", OUTPUT)
    stored = queries.get_job(database, ANONYMOUS, job.id)
    assert (stored.status, stored.error_code) == (Status.FAILED, "server_error")
    assert stored.error_message == "out of\0memory"
    assert (stored.attempts[0].status, stored.attempts[0].output) == (
        AttemptStatus.FAILED,
        "Because.",
    )


def test_cancel_ends_a_waiting_job(database: Database) -> None:
    job = submit(database)
    assert cancellation.cancel(database, ANONYMOUS, job.id).status is Status.CANCELLED
    assert stages.claim(database, job.id, 0, WORKER, job_timeout=60) is None


def test_cancel_revokes_the_lease_of_a_running_stage(database: Database) -> None:
    job = submit(database)
    claimed = claim(database, job)
    assert cancellation.cancel(database, ANONYMOUS, job.id).status is Status.CANCELLED
    assert workers.held_leases(database, WORKER) == set()
    assert not stages.record(database, claimed, OUTPUT)
    assert queries.get_job(database, ANONYMOUS, job.id).attempts[0].status is AttemptStatus.RUNNING
    stages.keep_partial(
        database, claimed, replace(OUTPUT, text="Bec", delta_lengths=[3], finish_reason="cancelled")
    )
    stored = queries.get_job(database, ANONYMOUS, job.id)
    assert stored.status is Status.CANCELLED
    assert (stored.attempts[0].status, stored.attempts[0].output) == (
        AttemptStatus.CANCELLED,
        "Bec",
    )
    assert stored.finished_at is not None
    assert stored.attempts[0].finished_at is not None
    assert stored.finished_at <= stored.attempts[0].finished_at
    assert not sweeping.any_unfinished(database)


def test_cancel_leaves_an_ended_job_as_it_is(database: Database) -> None:
    job = submit(database)
    stages.fail(database, claim(database, job), "server_error", "broken")
    assert cancellation.cancel(database, ANONYMOUS, job.id).status is Status.FAILED
    with pytest.raises(JobNotFoundError):
        cancellation.cancel(database, ANONYMOUS, "resp_unknown")


def test_a_cancel_that_races_with_the_end_gives_one_final_status(database: Database) -> None:
    for _ in range(10):
        job = submit(database)
        for stage_index in range(2):
            stages.record(database, claim(database, job, stage_index), OUTPUT)
        claimed = claim(database, job, 2)
        with ThreadPoolExecutor(2) as pool:
            recorded = pool.submit(stages.record, database, claimed, OUTPUT)
            cancelled = pool.submit(cancellation.cancel, database, ANONYMOUS, job.id)
        stored = queries.get_job(database, ANONYMOUS, job.id)
        expected = Status.COMPLETED if recorded.result() else Status.CANCELLED
        assert stored.status is cancelled.result().status is expected
        assert [a.status for a in stored.attempts[:2]] == [AttemptStatus.FINISHED] * 2
        assert stored.attempts[2].status.value == {
            Status.COMPLETED: "finished",
            Status.CANCELLED: "running",  # until its worker stops
        }.get(expected)


def test_an_idempotency_key_gives_the_same_job(database: Database) -> None:
    keyed = replace(QUESTION, keyed=Keyed(ANONYMOUS, "k", "a"))
    changed = replace(QUESTION, keyed=Keyed(ANONYMOUS, "k", "b"))
    first, created = submission.submit(database, ANONYMOUS, keyed, max_queued=10)
    repeated, created_again = submission.submit(database, ANONYMOUS, keyed, max_queued=10)
    assert (created, created_again, repeated.id) == (True, False, first.id)
    with pytest.raises(IdempotencyError):
        submission.submit(database, ANONYMOUS, changed, max_queued=10)
    with ThreadPoolExecutor(8) as pool:
        second_request = replace(QUESTION, keyed=Keyed(ANONYMOUS, "k2", "a"))
        submitted = list(
            pool.map(
                lambda _: submission.submit(database, ANONYMOUS, second_request, max_queued=10),
                range(8),
            )
        )
    assert len({job.id for job, _ in submitted}) == 1
    assert sum(created for _, created in submitted) == 1


def test_jobs_accepted_together_have_each_its_own_outcome(database: Database) -> None:
    def request(new: NewJob, owner: str = ANONYMOUS) -> JobRequest:
        return JobRequest(owner, new)

    def with_key(key: str, digest: str = "a", owner: str = ANONYMOUS) -> NewJob:
        return replace(QUESTION, keyed=Keyed(owner, key, digest))

    keyed, new = with_key("k"), with_key("new")
    earlier, _ = submission.submit(database, ANONYMOUS, keyed, max_queued=10)
    outcomes = submission.submit_all(
        database,
        [
            request(QUESTION),
            request(keyed),
            request(with_key("k", "b")),
            request(new),
            request(new),
            request(with_key("k", owner="other"), "other"),
            request(QUESTION),
            request(QUESTION),
        ],
        max_queued=5,
    )
    kinds = [
        type(outcome) if isinstance(outcome, Exception) else outcome[1] for outcome in outcomes
    ]
    assert kinds == [True, False, IdempotencyError, True, False, True, True, QueueFullError]
    accepted = [outcome[0] for outcome in outcomes if not isinstance(outcome, Exception)]
    assert accepted[1].id == earlier.id
    assert accepted[2].id == accepted[3].id
    assert (accepted[2].owner, accepted[4].owner) == (ANONYMOUS, "other")
    for job in accepted:
        stored = queries.get_job(database, job.owner, job.id)
        assert (stored.created_at, stored.ready_at, stored.status, stored.run) == (
            job.created_at,
            job.ready_at,
            job.status,
            job.run,
        )
    assert len({job.id for job in accepted}) == 5


def test_a_job_that_the_database_refuses_harms_no_other(database: Database) -> None:
    broken = replace(QUESTION, question=None)  # type: ignore[arg-type]  # NOT NULL
    outcomes = submission.submit_all(
        database,
        [JobRequest(ANONYMOUS, each) for each in (QUESTION, broken, QUESTION)],
        max_queued=10,
    )
    assert [isinstance(outcome, sa.exc.IntegrityError) for outcome in outcomes] == [
        False,
        True,
        False,
    ]
    assert len(queries.list_jobs(database, ANONYMOUS, PageRequest(10))[0]) == 2


def test_a_full_queue_refuses_jobs(database: Database) -> None:
    submission.submit(database, ANONYMOUS, QUESTION, max_queued=1)
    with pytest.raises(QueueFullError):
        submission.submit(database, ANONYMOUS, QUESTION, max_queued=1)
    assert len(queries.list_jobs(database, ANONYMOUS, PageRequest(10))[0]) == 1


def test_pages_list_every_job_once(database: Database) -> None:
    ids = [submit(database).id for _ in range(7)]
    listed: list[str] = []
    after, has_more = None, True
    while has_more:
        page, has_more = queries.list_jobs(database, ANONYMOUS, PageRequest(3, after))
        listed += [job.id for job in page]
        after = listed[-1]
    assert listed == ids[::-1]
    oldest, _ = queries.list_jobs(database, ANONYMOUS, PageRequest(2, newest_first=False))
    assert [job.id for job in oldest] == ids[:2]
    with pytest.raises(CursorError):
        queries.list_jobs(database, ANONYMOUS, PageRequest(3, "resp_unknown"))


def test_workers_come_and_go(database: Database) -> None:
    assert workers.list_ready(database) == []
    workers.set_state(database, WORKER, WorkerState.READY)
    assert [worker.id for worker in workers.list_ready(database)] == [WORKER]
    workers.register(
        database, "worker-2", "localhost", 2, replace(RUNTIME, context=99, tokenizer='{"v": 2}')
    )
    assert [serving.context for serving in workers.list_serving(database)] == [RUNTIME.context]
    workers.set_state(database, "worker-2", WorkerState.READY)
    old, new = sorted(
        workers.list_serving(database), key=lambda worker: worker.context, reverse=True
    )
    assert (old.context, new.context) == (RUNTIME.context, 99)
    assert workers.get_tokenizer(database, new.tokenizer_digest) == '{"v": 2}'
    for worker_id in (WORKER, "worker-2"):
        workers.set_state(database, worker_id, WorkerState.STOPPED)
    assert workers.list_serving(database) == [new], "the newest of all"
    assert workers.list_ready(database) == []


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(text=st.text(alphabet=st.one_of(st.sampled_from("\0␛0a"), st.characters(codec="utf-8"))))
def test_text_comes_back_exactly(database: Database, text: str) -> None:
    job = submit(database, question=text, system=text + "\0")
    claimed = claim(database, job)
    stages.record(database, claimed, replace(OUTPUT, text=text, delta_lengths=[len(text)]))
    stored = queries.get_job(database, ANONYMOUS, job.id)
    assert (stored.question, stored.system) == (text, text + "\0")
    assert stored.attempts[0].output == text
    assert stored.attempts[0].prompt == claimed.prompt


def test_nul_is_stored_as_an_escape(database: Database) -> None:
    job = submit(database, question="a\0b ␛")
    with database.engine.connect() as connection:
        stored = connection.scalar(
            sa.text("SELECT question FROM jobs WHERE id = :id"), {"id": job.id}
        )
    assert stored == "a␛0b ␛␛"


def test_an_owner_finds_only_its_own_jobs(database: Database) -> None:
    first_job = submit(database)
    second_job, _ = submission.submit(database, "other", QUESTION, max_queued=10)
    for owner, own, foreign in (
        (ANONYMOUS, first_job, second_job),
        ("other", second_job, first_job),
    ):
        assert queries.get_job(database, owner, own.id).owner == owner
        assert [job.id for job in queries.list_jobs(database, owner, PageRequest(10))[0]] == [
            own.id
        ]
        for use_case in (queries.get_job, queries.get_version, cancellation.cancel):
            with pytest.raises(JobNotFoundError):
                use_case(database, owner, foreign.id)
        with pytest.raises(CursorError):
            queries.list_jobs(database, owner, PageRequest(10, foreign.id))
    assert queries.get_job(database, "other", second_job.id).status is Status.QUEUED


def test_the_owner_none_stands_for_all_owners(database: Database) -> None:
    first_job = submit(database)
    second_job, _ = submission.submit(database, "other", QUESTION, max_queued=10)
    jobs, _ = queries.list_jobs(database, None, PageRequest(10))
    assert [job.id for job in jobs] == [second_job.id, first_job.id]
    jobs, _ = queries.list_jobs(database, None, PageRequest(10, second_job.id))
    assert [job.id for job in jobs] == [first_job.id]
    assert cancellation.cancel(database, None, second_job.id).status is Status.CANCELLED
    assert queries.get_version(database, None, second_job.id).status is Status.CANCELLED


def test_idempotency_keys_are_per_owner(database: Database) -> None:
    keyed = replace(QUESTION, keyed=Keyed(ANONYMOUS, "k", "a"))
    first_job, _ = submission.submit(database, ANONYMOUS, keyed, max_queued=10)
    of_other = Keyed("other", "k", "b")
    second_request = replace(QUESTION, keyed=of_other)
    second_job, created = submission.submit(database, "other", second_request, max_queued=10)
    assert (created, second_job.id != first_job.id) == (True, True)
    repeated, created = submission.submit(database, ANONYMOUS, keyed, max_queued=10)
    assert (created, repeated.id) == (False, first_job.id)
    stored = submission.find_made(database, of_other)
    assert stored is not None
    assert stored.id == second_job.id


def test_a_failed_unit_of_work_rolls_back(database: Database) -> None:
    """All of its statements."""
    job = submit(database)

    def fail_after_two_statements() -> None:
        with database.write() as connection:
            claimed = leases.claim(connection, job.id, 0, WORKER, job_timeout=60, exclusive=False)
            assert claimed is not None
            workers_statements.set_state(connection, WORKER, WorkerState.STOPPED)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_after_two_statements()
    assert queries.get_job(database, ANONYMOUS, job.id).status is Status.QUEUED
    with database.read() as connection:
        assert connection.scalar(sa.select(Worker.state)) is WorkerState.LOADING
    claim(database, job)
