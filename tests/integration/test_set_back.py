"""A database that is set back while workers run: by a restored backup, or by a failover that lost what was committed last."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import sqlalchemy as sa
from celery.exceptions import Ignore

from jobs.database import Database
from jobs.models import ANONYMOUS, Attempt, AttemptStatus, Job, Status, Worker
from jobs.use_cases import queries, stages, workers
from tests.conftest import RUNTIME, WORKER
from tests.integration.held_engine import HeldEngine, finish
from tests.integration.rows import OUTPUT, claim, submit
from tests.servers import PATIENCE
from worker.progress_publisher import ProgressPublisher
from worker.stage_runner import StageRunner

OTHER = "worker-2"


def forget_claims(database: Database) -> None:
    """Set a database back to before its jobs were claimed."""
    with database.engine.begin() as connection:
        connection.execute(sa.delete(Attempt))
        connection.execute(
            sa.update(Job).values(
                status=Status.QUEUED,
                lease_token=0,
                lease_expires_at=None,
                worker_id=None,
                model=None,
                started_at=None,
                deadline_at=None,
            )
        )


def test_a_worker_that_claims_what_it_was_running_goes_on(
    database: Database, publisher: ProgressPublisher
) -> None:
    """The database repeats the lease token. The first attempt is stopped, and the chain follows the second."""
    engine = HeldEngine()
    runner = StageRunner(database, engine, publisher, WORKER, job_timeout=60)
    job = submit(database)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(runner.run, job.id, 0)
        forgotten = engine.generations.get(timeout=PATIENCE)
        forget_claims(database)
        second = pool.submit(runner.run, job.id, 0)
        current = engine.generations.get(timeout=PATIENCE)
        cancelled = forgotten.cancelled, current.cancelled
        finish(forgotten)
        stopped = first.exception(PATIENCE)
        running = runner.running
        finish(current)
        assert second.exception(PATIENCE) is None, "the next stage's message follows"
    assert cancelled == (True, False)
    assert isinstance(stopped, Ignore)
    assert running == [(job.id, 1)]
    assert runner.running == []
    told = queries.get_job(database, ANONYMOUS, job.id, with_history=True)
    assert told.stage_index == 1
    assert [attempt.status for attempt in told.attempts] == [AttemptStatus.FINISHED]


def test_a_forgotten_claim_cannot_end_the_attempt_of_another_worker(database: Database) -> None:
    workers.register(database, OTHER, "elsewhere", 2, RUNTIME)
    job = submit(database)
    forgotten = claim(database, job)
    forget_claims(database)
    current = claim(database, job, worker=OTHER)
    assert current.lease_token == forgotten.lease_token
    assert not stages.record(database, forgotten, OUTPUT)
    assert not stages.release(database, forgotten, "the worker shut down")
    assert not stages.fail(database, forgotten, "server_error", "it failed")
    assert stages.record(database, current, OUTPUT)
    [attempt] = queries.get_job(database, ANONYMOUS, job.id).attempts
    assert (attempt.status, attempt.worker_id) == (AttemptStatus.FINISHED, OTHER)


def test_a_worker_without_a_row_registers_and_runs_the_stage(
    database: Database, publisher: ProgressPublisher
) -> None:
    engine = HeldEngine()
    job = submit(database)
    with database.engine.begin() as connection:
        connection.execute(sa.delete(Worker))
    assert stages.claim(database, job.id, 0, WORKER, job_timeout=60) is None

    def register() -> None:
        workers.register_again(database, WORKER, "localhost", 1, RUNTIME)

    runner = StageRunner(database, engine, publisher, WORKER, job_timeout=60, register=register)
    with ThreadPoolExecutor() as pool:
        done = pool.submit(runner.run, job.id, 0)
        finish(engine.generations.get(timeout=PATIENCE))
        done.result(PATIENCE)
    assert [worker.id for worker in workers.list_ready(database)] == [WORKER]
    assert queries.get_job(database, ANONYMOUS, job.id).model == RUNTIME.model
