"""A worker's heartbeat renews its leases, and notices what was taken away."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import cast

import pytest
import sqlalchemy as sa

from jobs.database import Database
from jobs.database_clock import utcnow
from jobs.models import Job, Worker
from jobs.use_cases import workers
from jobs.use_cases.workers import Runtime
from tests.conftest import new_database
from tests.integration.rows import claim, submit
from worker.heartbeat import Heartbeat
from worker.stage_runner import StageRunner

#: Seconds of any wait; a good run needs a fraction.
PATIENCE = 30
WORKER = "worker-1"


class FakeRunner:
    """A runner with one stage, which says when it looks for lost leases."""

    def __init__(self) -> None:
        self.running: list[tuple[str, int]] = []
        self.looked = threading.Event()

    def cancel_lost(self) -> None:
        self.looked.set()

    def check_pause(self) -> None:
        pass


@pytest.fixture
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    database = Database(new_database("sqlite", request, tmp_path))
    workers.register(database, WORKER, "localhost", os.getpid(), Runtime({}, 4096, "{}"))
    yield database
    database.close()


@pytest.fixture
def runner() -> FakeRunner:
    return FakeRunner()


@pytest.fixture
def duties(database: Database, runner: FakeRunner) -> Heartbeat:
    return Heartbeat(database, cast("StageRunner", runner), WORKER)


def seconds_left(database: Database, job_id: str) -> float:
    with database.engine.connect() as connection:
        statement = sa.select(Job.lease_expires_at, utcnow()).where(Job.id == job_id)
        expires_at, now = connection.execute(statement).one()
    assert expires_at is not None
    return float((expires_at - now).total_seconds())


def test_a_heartbeat_renews_the_leases_of_running_stages(
    database: Database, runner: FakeRunner, duties: Heartbeat
) -> None:
    running, forgotten = submit(database), submit(database)
    runner.running = [(running.id, claim(database, running).lease_token)]
    claim(database, forgotten)
    with database.engine.begin() as connection:
        connection.execute(sa.update(Job).values(lease_expires_at=utcnow(1)))
    duties.beat()
    assert seconds_left(database, running.id) > 10
    assert seconds_left(database, forgotten.id) <= 1


def test_a_worker_that_the_database_has_lost_registers_again(
    database: Database, runner: FakeRunner
) -> None:
    runtime = Runtime({}, 4096, "{}")
    register = partial(workers.register_again, database, WORKER, "localhost", 7, runtime)
    duties = Heartbeat(database, cast("StageRunner", runner), WORKER, register=register)
    with database.engine.begin() as connection:
        connection.execute(sa.delete(Worker))
    duties.beat()
    duties.beat()
    [worker] = workers.list_ready(database)
    assert (worker.id, worker.model) == (WORKER, runtime.model)


def test_the_thread_beats_and_looks_for_lost_leases_until_it_is_stopped(
    database: Database, runner: FakeRunner, duties: Heartbeat
) -> None:
    with database.engine.begin() as connection:
        connection.execute(sa.update(Worker).values(seen_at=utcnow(-100)))
    duties.start()
    for _ in range(2):
        assert runner.looked.wait(PATIENCE)
        runner.looked.clear()
    duties.stop()
    with database.engine.connect() as connection:
        seen_at, now = connection.execute(sa.select(Worker.seen_at, utcnow())).one()
    assert (now - seen_at).total_seconds() < 50
