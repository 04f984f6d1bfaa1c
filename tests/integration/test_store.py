"""The store's promises, on SQLite and on PostgreSQL: a job's way, and what is kept of it."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs.models import AttemptStatus, Status, WorkerState
from jobs.pipeline import stage_seed
from jobs.store import (
    Claim,
    IdempotencyError,
    JobNotFoundError,
    QueueFullError,
    Store,
)
from tests.conftest import RUNTIME, WORKER
from tests.integration.rows import OUTPUT, QUESTION, claim, let_leases_run_out, submit


def test_a_job_goes_through_its_three_stages(store: Store) -> None:
    job = submit(store)
    assert (job.status, job.stage_index) == (Status.QUEUED, 0)
    for stage_index, text in enumerate(["an answer", "a critique", "a better answer"]):
        held = claim(store, job, stage_index)
        assert held.sampling.seed == stage_seed(7, stage_index)
        assert held.last == (stage_index == 2)
        output = replace(OUTPUT, text=text, delta_lengths=[len(text)])
        assert store.record(held, output)
    kept = store.job(job.id)
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


def test_an_answer_cut_at_its_limit_is_incomplete(store: Store) -> None:
    job = submit(store)
    for stage_index in range(3):
        assert store.record(claim(store, job, stage_index), replace(OUTPUT, finish_reason="length"))
    assert store.job(job.id).status is Status.INCOMPLETE


def test_only_one_of_many_claims_a_stage(store: Store) -> None:
    job = submit(store)
    start = threading.Barrier(8)

    def try_to_claim(_: int) -> Claim | None:
        start.wait()
        return store.claim(job.id, 0, WORKER, job_timeout=60)

    with ThreadPoolExecutor(8) as pool:
        claims = [found for found in pool.map(try_to_claim, range(8)) if found]
    assert len(claims) == 1
    assert len(store.job(job.id).attempts) == 1


def test_a_message_that_comes_twice_or_too_early_finds_nothing(store: Store) -> None:
    job = submit(store)
    assert store.claim(job.id, 1, WORKER, job_timeout=60) is None
    assert store.record(claim(store, job), OUTPUT)
    assert store.claim(job.id, 0, WORKER, job_timeout=60) is None
    assert store.claim("resp_unknown", 0, WORKER, job_timeout=60) is None


def test_who_lost_the_lease_can_record_nothing(store: Store) -> None:
    job = submit(store)
    late = claim(store, job)
    let_leases_run_out(store)
    assert store.sweep().rescued == [job.id]
    assert not store.record(late, OUTPUT)
    again = claim(store, job)
    assert not store.record(late, OUTPUT)
    assert not store.fail(late, "server_error", "too late")
    assert not store.release(late, "too late")
    assert store.record(again, OUTPUT)
    first, second = store.job(job.id).attempts
    assert (first.status, first.number, first.output) == (AttemptStatus.LOST, 1, None)
    assert (second.status, second.number) == (AttemptStatus.FINISHED, 2)
    assert first.seed == second.seed


def test_a_failed_stage_ends_the_job_with_the_reason(store: Store) -> None:
    job = submit(store)
    assert store.fail(claim(store, job), "server_error", "out of\0memory", OUTPUT)
    kept = store.job(job.id)
    assert (kept.status, kept.error_code) == (Status.FAILED, "server_error")
    assert kept.error_message == "out of\0memory"
    assert (kept.attempts[0].status, kept.attempts[0].output) == (AttemptStatus.FAILED, "Because.")


def test_cancel_ends_a_waiting_job(store: Store) -> None:
    job = submit(store)
    assert store.cancel(job.id).status is Status.CANCELLED
    assert store.claim(job.id, 0, WORKER, job_timeout=60) is None


def test_cancel_takes_a_running_stage_away(store: Store) -> None:
    job = submit(store)
    held = claim(store, job)
    assert store.cancel(job.id).status is Status.CANCELLED
    assert store.held(WORKER) == set()
    assert not store.record(held, OUTPUT)
    assert store.job(job.id).attempts[0].status is AttemptStatus.RUNNING
    store.keep_partial(
        held, replace(OUTPUT, text="Bec", delta_lengths=[3], finish_reason="cancelled")
    )
    kept = store.job(job.id)
    assert kept.status is Status.CANCELLED
    assert (kept.attempts[0].status, kept.attempts[0].output) == (AttemptStatus.CANCELLED, "Bec")
    assert kept.finished_at is not None
    assert kept.attempts[0].finished_at is not None
    assert kept.finished_at <= kept.attempts[0].finished_at
    assert not store.busy()


def test_cancel_leaves_an_ended_job_as_it_is(store: Store) -> None:
    job = submit(store)
    store.fail(claim(store, job), "server_error", "broken")
    assert store.cancel(job.id).status is Status.FAILED
    with pytest.raises(JobNotFoundError):
        store.cancel("resp_unknown")


def test_a_cancel_that_races_with_the_end_gives_one_final_status(store: Store) -> None:
    for _ in range(10):
        job = submit(store)
        for stage_index in range(2):
            store.record(claim(store, job, stage_index), OUTPUT)
        held = claim(store, job, 2)
        with ThreadPoolExecutor(2) as pool:
            recorded = pool.submit(store.record, held, OUTPUT)
            cancelled = pool.submit(store.cancel, job.id)
        kept = store.job(job.id)
        expected = Status.COMPLETED if recorded.result() else Status.CANCELLED
        assert kept.status is cancelled.result().status is expected
        assert [a.status for a in kept.attempts[:2]] == [AttemptStatus.FINISHED] * 2
        assert kept.attempts[2].status.value == {
            Status.COMPLETED: "finished",
            Status.CANCELLED: "running",  # until its worker stops
        }.get(expected)


def test_the_same_key_and_request_give_the_same_job(store: Store) -> None:
    keyed = replace(QUESTION, idempotency_key="k", request_digest="a")
    first, created = store.submit(keyed, max_queued=10)
    again, created_again = store.submit(keyed, max_queued=10)
    assert (created, created_again, again.id) == (True, False, first.id)
    with pytest.raises(IdempotencyError):
        store.submit(replace(keyed, request_digest="b"), max_queued=10)
    with ThreadPoolExecutor(8) as pool:
        other = replace(keyed, idempotency_key="k2")
        found = list(pool.map(lambda _: store.submit(other, max_queued=10), range(8)))
    assert len({job.id for job, _ in found}) == 1
    assert sum(created for _, created in found) == 1


def test_a_full_queue_takes_no_more(store: Store) -> None:
    store.submit(QUESTION, max_queued=1)
    with pytest.raises(QueueFullError):
        store.submit(QUESTION, max_queued=1)
    assert len(store.page(limit=10)[0]) == 1


def test_pages_go_through_all_jobs_once(store: Store) -> None:
    ids = [submit(store).id for _ in range(7)]
    seen: list[str] = []
    after, more = None, True
    while more:
        page, more = store.page(limit=3, after=after)
        seen += [job.id for job in page]
        after = seen[-1]
    assert seen == ids[::-1]
    oldest, _ = store.page(limit=2, newest_first=False)
    assert [job.id for job in oldest] == ids[:2]
    with pytest.raises(JobNotFoundError):
        store.page(limit=3, after="resp_unknown")


def test_workers_come_and_go(store: Store) -> None:
    assert store.ready_workers() == []
    store.set_worker_state(WORKER, WorkerState.READY)
    assert [worker.id for worker in store.ready_workers()] == [WORKER]
    store.register("worker-2", "localhost", 2, replace(RUNTIME, context=99, tokenizer='{"v": 2}'))
    serving = store.serving()
    assert serving is not None
    assert serving.context == 99
    assert store.tokenizer(serving.tokenizer_digest) == '{"v": 2}'
    store.set_worker_state(WORKER, WorkerState.STOPPED)
    assert store.ready_workers() == []


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(text=st.text(alphabet=st.one_of(st.sampled_from("\0␛0a"), st.characters(codec="utf-8"))))
def test_text_comes_back_exactly(store: Store, text: str) -> None:
    job = submit(store, question=text, system=text + "\0")
    held = claim(store, job)
    store.record(held, replace(OUTPUT, text=text, delta_lengths=[len(text)]))
    kept = store.job(job.id)
    assert (kept.question, kept.system) == (text, text + "\0")
    assert kept.attempts[0].output == text
    assert kept.attempts[0].prompt == held.prompt


def test_nul_is_kept_where_sql_can_see_it(store: Store) -> None:
    job = submit(store, question="a\0b ␛")
    with store.engine.connect() as connection:
        stored = connection.scalar(
            sa.text("SELECT question FROM jobs WHERE id = :id"), {"id": job.id}
        )
    assert stored == "a␛0b ␛␛"
