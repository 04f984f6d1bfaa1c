"""The database's promises, on SQLite and on PostgreSQL: a job's way, and what is kept of it."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs.database import Database
from jobs.errors import IdempotencyError, JobNotFoundError, QueueFullError
from jobs.models import ANONYMOUS, AttemptStatus, Status, Worker, WorkerState
from jobs.pipeline import stage_seed
from jobs.statements import leases
from jobs.statements import workers as workers_statements
from jobs.use_cases import cancellation, queries, stages, submission, sweeping, workers
from jobs.use_cases.stages import Claim
from tests.conftest import RUNTIME, WORKER
from tests.integration.rows import OUTPUT, QUESTION, claim, let_leases_run_out, submit


def test_a_job_goes_through_its_three_stages(database: Database) -> None:
    job = submit(database)
    assert (job.status, job.stage_index) == (Status.QUEUED, 0)
    for stage_index, text in enumerate(["an answer", "a critique", "a better answer"]):
        held = claim(database, job, stage_index)
        assert held.sampling.seed == stage_seed(7, stage_index)
        assert held.last == (stage_index == 2)
        output = replace(OUTPUT, text=text, delta_lengths=[len(text)])
        assert stages.record(database, held, output)
    kept = queries.get_job(database, ANONYMOUS, job.id)
    assert (kept.status, kept.stage_index) == (Status.COMPLETED, 3)
    assert [a.output for a in kept.finished] == ["an answer", "a critique", "a better answer"]
    assert kept.finished[2].prompt == (
        "SYSTEM: Be brief. \nUSER: Why? \nRESPONSE: an answer \nCRITIQUE: a critique \nREGENERATOR:"
    )
    assert kept.metadata_ == {"team": "blue"}
    for attempt in kept.attempts:
        assert attempt.status is AttemptStatus.FINISHED
        assert attempt.worker.runtime == RUNTIME.description
        assert attempt.finished_at is not None
        assert attempt.first_token_at is not None
        times = [attempt.queued_at, attempt.started_at, attempt.first_token_at]
        assert times == sorted(times)
    assert kept.started_at is not None
    assert kept.finished_at is not None
    assert kept.created_at <= kept.started_at <= kept.finished_at
    assert kept.finished_at == kept.attempts[-1].finished_at


def test_an_answer_cut_at_its_limit_is_incomplete(database: Database) -> None:
    job = submit(database)
    for stage_index in range(3):
        assert stages.record(
            database, claim(database, job, stage_index), replace(OUTPUT, finish_reason="length")
        )
    assert queries.get_job(database, ANONYMOUS, job.id).status is Status.INCOMPLETE


def test_only_one_of_many_claims_a_stage(database: Database) -> None:
    job = submit(database)
    start = threading.Barrier(8)

    def try_to_claim(_: int) -> Claim | None:
        start.wait()
        return stages.claim(database, job.id, 0, WORKER, job_timeout=60)

    with ThreadPoolExecutor(8) as pool:
        claims = [held for held in pool.map(try_to_claim, range(8)) if held]
    assert len(claims) == 1
    assert len(queries.get_job(database, ANONYMOUS, job.id).attempts) == 1


def test_a_message_that_comes_twice_or_too_early_finds_nothing(database: Database) -> None:
    job = submit(database)
    assert stages.claim(database, job.id, 1, WORKER, job_timeout=60) is None
    assert stages.record(database, claim(database, job), OUTPUT)
    assert stages.claim(database, job.id, 0, WORKER, job_timeout=60) is None
    assert stages.claim(database, "resp_unknown", 0, WORKER, job_timeout=60) is None


def test_who_lost_the_lease_can_record_nothing(database: Database) -> None:
    job = submit(database)
    late = claim(database, job)
    let_leases_run_out(database)
    assert sweeping.sweep(database).taken_back == [job.id]
    assert not stages.record(database, late, OUTPUT)
    again = claim(database, job)
    assert not stages.record(database, late, OUTPUT)
    assert not stages.fail(database, late, "server_error", "too late")
    assert not stages.release(database, late, "too late")
    assert stages.record(database, again, OUTPUT)
    first, second = queries.get_job(database, ANONYMOUS, job.id).attempts
    assert (first.status, first.number, first.output) == (AttemptStatus.LOST, 1, None)
    assert (second.status, second.number) == (AttemptStatus.FINISHED, 2)
    assert first.seed == second.seed


def test_a_failed_stage_ends_the_job_with_the_reason(database: Database) -> None:
    job = submit(database)
    assert stages.fail(database, claim(database, job), "server_error", "out of\0memory", OUTPUT)
    kept = queries.get_job(database, ANONYMOUS, job.id)
    assert (kept.status, kept.error_code) == (Status.FAILED, "server_error")
    assert kept.error_message == "out of\0memory"
    assert (kept.attempts[0].status, kept.attempts[0].output) == (AttemptStatus.FAILED, "Because.")


def test_cancel_ends_a_waiting_job(database: Database) -> None:
    job = submit(database)
    assert cancellation.cancel(database, ANONYMOUS, job.id).status is Status.CANCELLED
    assert stages.claim(database, job.id, 0, WORKER, job_timeout=60) is None


def test_cancel_takes_a_running_stage_away(database: Database) -> None:
    job = submit(database)
    held = claim(database, job)
    assert cancellation.cancel(database, ANONYMOUS, job.id).status is Status.CANCELLED
    assert workers.held_leases(database, WORKER) == set()
    assert not stages.record(database, held, OUTPUT)
    assert queries.get_job(database, ANONYMOUS, job.id).attempts[0].status is AttemptStatus.RUNNING
    stages.keep_partial(
        database, held, replace(OUTPUT, text="Bec", delta_lengths=[3], finish_reason="cancelled")
    )
    kept = queries.get_job(database, ANONYMOUS, job.id)
    assert kept.status is Status.CANCELLED
    assert (kept.attempts[0].status, kept.attempts[0].output) == (AttemptStatus.CANCELLED, "Bec")
    assert kept.finished_at is not None
    assert kept.attempts[0].finished_at is not None
    assert kept.finished_at <= kept.attempts[0].finished_at
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
        held = claim(database, job, 2)
        with ThreadPoolExecutor(2) as pool:
            recorded = pool.submit(stages.record, database, held, OUTPUT)
            cancelled = pool.submit(cancellation.cancel, database, ANONYMOUS, job.id)
        kept = queries.get_job(database, ANONYMOUS, job.id)
        expected = Status.COMPLETED if recorded.result() else Status.CANCELLED
        assert kept.status is cancelled.result().status is expected
        assert [a.status for a in kept.attempts[:2]] == [AttemptStatus.FINISHED] * 2
        assert kept.attempts[2].status.value == {
            Status.COMPLETED: "finished",
            Status.CANCELLED: "running",  # until its worker stops
        }.get(expected)


def test_the_same_key_and_request_give_the_same_job(database: Database) -> None:
    keyed = replace(QUESTION, idempotency_key="k", request_digest="a")
    first, created = submission.submit(database, ANONYMOUS, keyed, max_queued=10)
    again, created_again = submission.submit(database, ANONYMOUS, keyed, max_queued=10)
    assert (created, created_again, again.id) == (True, False, first.id)
    with pytest.raises(IdempotencyError):
        submission.submit(database, ANONYMOUS, replace(keyed, request_digest="b"), max_queued=10)
    with ThreadPoolExecutor(8) as pool:
        other = replace(keyed, idempotency_key="k2")
        submitted = list(
            pool.map(
                lambda _: submission.submit(database, ANONYMOUS, other, max_queued=10), range(8)
            )
        )
    assert len({job.id for job, _ in submitted}) == 1
    assert sum(created for _, created in submitted) == 1


def test_a_full_queue_takes_no_more(database: Database) -> None:
    submission.submit(database, ANONYMOUS, QUESTION, max_queued=1)
    with pytest.raises(QueueFullError):
        submission.submit(database, ANONYMOUS, QUESTION, max_queued=1)
    assert len(queries.list_jobs(database, ANONYMOUS, limit=10)[0]) == 1


def test_pages_go_through_all_jobs_once(database: Database) -> None:
    ids = [submit(database).id for _ in range(7)]
    seen: list[str] = []
    after, more = None, True
    while more:
        page, more = queries.list_jobs(database, ANONYMOUS, limit=3, after=after)
        seen += [job.id for job in page]
        after = seen[-1]
    assert seen == ids[::-1]
    oldest, _ = queries.list_jobs(database, ANONYMOUS, limit=2, newest_first=False)
    assert [job.id for job in oldest] == ids[:2]
    with pytest.raises(JobNotFoundError):
        queries.list_jobs(database, ANONYMOUS, limit=3, after="resp_unknown")


def test_workers_come_and_go(database: Database) -> None:
    assert workers.list_ready(database) == []
    workers.set_state(database, WORKER, WorkerState.READY)
    assert [worker.id for worker in workers.list_ready(database)] == [WORKER]
    workers.register(
        database, "worker-2", "localhost", 2, replace(RUNTIME, context=99, tokenizer='{"v": 2}')
    )
    assert [serving.context for serving in workers.list_serving(database)] == [RUNTIME.context]
    workers.set_state(database, "worker-2", WorkerState.READY)
    old, new = sorted(workers.list_serving(database), key=lambda one: one.context, reverse=True)
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
    held = claim(database, job)
    stages.record(database, held, replace(OUTPUT, text=text, delta_lengths=[len(text)]))
    kept = queries.get_job(database, ANONYMOUS, job.id)
    assert (kept.question, kept.system) == (text, text + "\0")
    assert kept.attempts[0].output == text
    assert kept.attempts[0].prompt == held.prompt


def test_nul_is_kept_where_sql_can_see_it(database: Database) -> None:
    job = submit(database, question="a\0b ␛")
    with database.engine.connect() as connection:
        stored = connection.scalar(
            sa.text("SELECT question FROM jobs WHERE id = :id"), {"id": job.id}
        )
    assert stored == "a␛0b ␛␛"


def test_an_owner_finds_only_its_own_jobs(database: Database) -> None:
    mine = submit(database)
    theirs, _ = submission.submit(database, "other", QUESTION, max_queued=10)
    for owner, own, foreign in ((ANONYMOUS, mine, theirs), ("other", theirs, mine)):
        assert queries.get_job(database, owner, own.id).owner == owner
        assert [job.id for job in queries.list_jobs(database, owner, limit=10)[0]] == [own.id]
        for look in (queries.get_job, queries.get_version, cancellation.cancel):
            with pytest.raises(JobNotFoundError):
                look(database, owner, foreign.id)
        with pytest.raises(JobNotFoundError):
            queries.list_jobs(database, owner, limit=10, after=foreign.id)
    assert queries.get_job(database, "other", theirs.id).status is Status.QUEUED


def test_an_idempotency_key_is_its_owners(database: Database) -> None:
    keyed = replace(QUESTION, idempotency_key="k", request_digest="a")
    mine, _ = submission.submit(database, ANONYMOUS, keyed, max_queued=10)
    other = replace(keyed, request_digest="b")
    theirs, created = submission.submit(database, "other", other, max_queued=10)
    assert (created, theirs.id != mine.id) == (True, True)
    again, created = submission.submit(database, ANONYMOUS, keyed, max_queued=10)
    assert (created, again.id) == (False, mine.id)
    kept = submission.find_by_idempotency_key(database, "other", "k", "b")
    assert kept is not None
    assert kept.id == theirs.id


def test_a_unit_of_work_that_fails_keeps_nothing(database: Database) -> None:
    """Whatever was done in it, by whichever statements."""
    job = submit(database)

    def fail_after_two_statements() -> None:
        with database.write() as connection:
            held = leases.claim(connection, job.id, 0, WORKER, job_timeout=60, exclusive=False)
            assert held is not None
            workers_statements.set_state(connection, WORKER, WorkerState.STOPPED)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_after_two_statements()
    assert queries.get_job(database, ANONYMOUS, job.id).status is Status.QUEUED
    with database.read() as connection:
        assert connection.scalar(sa.select(Worker.state)) is WorkerState.LOADING
    claim(database, job)
