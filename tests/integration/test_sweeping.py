"""What a sweep brings back, ends or publishes, on SQLite and on PostgreSQL."""

from __future__ import annotations

from dataclasses import replace

import pytest
import sqlalchemy as sa

from jobs.db import utcnow
from jobs.models import AttemptStatus, Job, Status, Worker, WorkerState
from jobs.store import (
    PAST_DEADLINE,
    JobNotFoundError,
    Store,
    publishing,
    sweeping,
)
from jobs.store.running import SUSPICIOUS
from tests.conftest import RUNTIME, WORKER
from tests.integration.rows import OUTPUT, claim, let_leases_run_out, submit


def test_heartbeats_keep_leases(store: Store) -> None:
    job = submit(store)
    held = claim(store, job)
    let_leases_run_out(store)
    store.heartbeat(WORKER, [(job.id, held.lease_token)])
    assert store.sweep().rescued == []
    assert store.held(WORKER) == {(job.id, held.lease_token)}
    assert store.record(held, OUTPUT)
    assert store.held(WORKER) == set()


def test_a_lease_that_nobody_knows_of_runs_out(store: Store) -> None:
    """A claim was committed, but its answer never came: no thread works on it."""
    job = submit(store)
    claim(store, job)
    let_leases_run_out(store)
    store.heartbeat(WORKER, [("resp_other", 1)])
    assert store.sweep().rescued == [job.id]


def test_a_job_long_past_its_deadline_ends_whoever_holds_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeping, "DEADLINE_GRACE", 0.0)
    job = submit(store)
    held = store.claim(job.id, 0, WORKER, job_timeout=0.001)
    assert held is not None
    assert store.sweep().failed == [job.id]
    assert store.held(WORKER) == set(), "its worker should stop"
    assert not store.record(held, OUTPUT)
    store.keep_partial(held, replace(OUTPUT, finish_reason="cancelled"))
    [attempt] = store.job(job.id).attempts
    assert (attempt.status, attempt.output) == (AttemptStatus.FAILED, OUTPUT.text)
    assert attempt.error == PAST_DEADLINE


def test_a_cancelled_attempt_ends_with_its_workers_lease(store: Store) -> None:
    job = submit(store)
    held = claim(store, job)
    store.cancel(job.id)
    assert store.sweep().stopped == []
    let_leases_run_out(store)
    store.heartbeat(WORKER, [(job.id, held.lease_token)])
    assert store.sweep().stopped == [], "its worker is still at it"
    let_leases_run_out(store)
    assert store.busy()
    swept = store.sweep()
    assert (swept.rescued, swept.failed, swept.stopped) == ([], [], [job.id])
    store.keep_partial(held, OUTPUT)
    [attempt] = store.job(job.id).attempts
    assert (attempt.status, attempt.output) == (AttemptStatus.CANCELLED, None)
    assert attempt.error == "the worker that ran this attempt stopped answering"
    assert not store.busy()


def test_a_job_whose_attempt_runs_is_not_deleted(store: Store) -> None:
    job = submit(store)
    held = claim(store, job)
    store.cancel(job.id)
    with store.engine.begin() as connection:
        connection.execute(sa.update(Job).values(finished_at=utcnow(-3 * 86_400)))
    assert store.delete_older(2) == 0
    store.keep_partial(held, None)
    assert store.delete_older(2) == 1


def test_a_job_that_brings_three_workers_down_fails(store: Store) -> None:
    job = submit(store)
    for _ in range(SUSPICIOUS):
        assert not store.suspicious(job.id, 0)
        claim(store, job)
        let_leases_run_out(store)
        assert store.sweep().failed == []
    claim(store, job, alone=True)
    let_leases_run_out(store)
    assert store.sweep().failed == [job.id]
    kept = store.job(job.id)
    assert (kept.status, kept.error_code) == (Status.FAILED, "worker_lost")
    assert [a.status for a in kept.attempts] == [AttemptStatus.LOST] * 3


def test_a_job_that_ran_beside_a_poisonous_one_does_not_fail_with_it(store: Store) -> None:
    poison, innocent = submit(store), submit(store)
    for _ in range(SUSPICIOUS):
        claim(store, poison)
        claim(store, innocent)
        let_leases_run_out(store)
        store.sweep()
    for job in (poison, innocent):
        assert store.claim(job.id, 0, WORKER, job_timeout=60) is None, "not beside others"
        assert store.suspicious(job.id, 0)
    assert store.record(claim(store, innocent, alone=True), OUTPUT)
    claim(store, poison, alone=True)
    let_leases_run_out(store)
    assert store.sweep().failed == [poison.id]
    assert not store.suspicious(innocent.id, 1), "its next stage has a clean record"
    assert store.record(claim(store, innocent, 1), OUTPUT)


def test_a_job_past_its_deadline_fails(store: Store) -> None:
    job = submit(store)
    held = store.claim(job.id, 0, WORKER, job_timeout=0.001)
    assert held is not None
    store.release(held, "the worker shut down")
    assert store.claim(job.id, 0, WORKER, job_timeout=60) is None
    assert store.sweep().failed == [job.id]
    assert store.job(job.id).error_code == "deadline_exceeded"


def test_the_outbox_holds_what_was_not_published(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "REPUBLISH_AFTER", 3600.0)
    new, half_done, published = submit(store), submit(store), submit(store)
    store.unpublish(new.id, 0)
    store.record(claim(store, half_done), OUTPUT)
    taken = store.take_unpublished(queue_empty=True, model=RUNTIME.model)
    assert [w.job_id for w in taken] == [new.id]
    assert store.take_unpublished(queue_empty=True, model=RUNTIME.model) == [], (
        "who took it publishes it"
    )
    store.put_back(taken)

    monkeypatch.setattr(publishing, "REPUBLISH_AFTER", -1.0)
    # Messages that should have been taken by now: the chain's next one for sure, the
    # question's only if Redis has no messages left.
    waiting = store.take_unpublished(queue_empty=False, model=RUNTIME.model)
    assert [(w.job_id, w.stage_index) for w in waiting] == [(half_done.id, 1), (new.id, 0)]
    waiting = store.take_unpublished(queue_empty=True, model=RUNTIME.model)
    assert {w.job_id for w in waiting} == {half_done.id, published.id, new.id}

    claim(store, new)
    store.cancel(published.id)
    assert [w.job_id for w in store.take_unpublished(queue_empty=True, model=RUNTIME.model)] == [
        half_done.id
    ]


def test_a_question_that_a_later_one_overtook_has_lost_its_message(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost, urgent = submit(store), submit(store, priority=9)
    with store.engine.begin() as connection:
        connection.execute(sa.update(Job).values(published_at=utcnow(-1)))
    later, waiting = submit(store, priority=5), submit(store)
    claim(store, later)
    assert store.take_unpublished(queue_empty=False, model=RUNTIME.model) == [], (
        "it may have been taken just now"
    )
    monkeypatch.setattr(publishing, "REPUBLISH_AFTER", -1.0)
    found = [w.job_id for w in store.take_unpublished(queue_empty=False, model=RUNTIME.model)]
    assert found == [urgent.id, lost.id], "and the one that came later may still be in the queue"
    urgent_later = submit(store, priority=9)
    claim(store, urgent_later)
    assert waiting.id not in [
        w.job_id for w in store.take_unpublished(queue_empty=False, model=RUNTIME.model)
    ]


def test_a_released_stage_is_published_again(store: Store) -> None:
    job = submit(store)
    store.release(claim(store, job), "the worker shut down")
    assert [w.job_id for w in store.take_unpublished(queue_empty=False, model=RUNTIME.model)] == [
        job.id
    ]
    kept = store.job(job.id)
    assert kept.attempts[0].status is AttemptStatus.RELEASED
    assert kept.attempts[0].error == "the worker shut down"


def test_old_jobs_are_deleted_with_their_attempts(store: Store) -> None:
    old, running, new = submit(store), submit(store), submit(store)
    store.fail(claim(store, old), "server_error", "broken")
    store.cancel(new.id)
    claim(store, running)
    with store.engine.begin() as connection:
        past = utcnow(-3 * 86_400)
        connection.execute(sa.update(Job).where(Job.id == old.id).values(finished_at=past))
    assert store.delete_older(2) == 1
    with pytest.raises(JobNotFoundError):
        store.job(old.id)
    assert {job.id for job in store.page(limit=10)[0]} == {running.id, new.id}


def test_old_jobs_are_deleted_a_few_at_a_time(store: Store) -> None:
    for _ in range(5):
        store.cancel(submit(store).id)
    with store.engine.begin() as connection:
        connection.execute(sa.update(Job).values(finished_at=utcnow(-3 * 86_400)))
    assert [store.delete_older(2, limit=2) for _ in range(4)] == [2, 2, 1, 0]


def test_workers_that_are_gone_and_ran_nothing_that_is_kept_are_forgotten(store: Store) -> None:
    """A history tells who ran it for as long as it is kept; one that may come back stays."""
    for name in ("stopped", "killed", "away", "newest"):
        store.register(name, "localhost", 1, RUNTIME)
    for name in (WORKER, "stopped", "newest"):
        store.set_worker_state(name, WorkerState.STOPPED)
    job = submit(store)
    store.record(claim(store, job), OUTPUT)
    ages = {"killed": 31, "away": 29}
    with store.engine.begin() as connection:
        for name, days in ages.items():
            seen = sa.update(Worker).where(Worker.id == name)
            connection.execute(seen.values(seen_at=utcnow(-days * 86_400.0)))

    def left() -> set[str]:
        after = None
        while (after := store.forget_workers(after, limit=2)) is not None:
            pass
        with store.engine.connect() as connection:
            return set(connection.scalars(sa.select(Worker.id)))

    assert left() == {WORKER, "away", "newest"}
    assert store.heartbeat("away", [])
    assert not store.heartbeat("killed", []), "it is told, and stops"
    store.cancel(job.id)
    with store.engine.begin() as connection:
        connection.execute(sa.update(Job).values(finished_at=utcnow(-3 * 86_400)))
    assert store.delete_older(2) == 1
    assert left() == {"away", "newest"}
