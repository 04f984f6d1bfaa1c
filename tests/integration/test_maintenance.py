"""Background duties, alone and concurrent, with a real Redis and both databases."""

from __future__ import annotations

import ast
import datetime as dt
import json
import shutil
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import redis
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

import migrations
from jobs.column_types import utcnow
from jobs.database import Database
from jobs.errors import QueueUnavailableError
from jobs.maintenance import Maintenance
from jobs.models import ANONYMOUS, Job, WorkerState
from jobs.page_request import PageRequest
from jobs.pipeline import NextStage
from jobs.progress import Progress
from jobs.protocol.history import history
from jobs.queue import KEY_PREFIX, QUEUE, Publisher, make_app
from jobs.timing import HEARTBEAT_INTERVAL, LEASE
from jobs.tlog.note import Signer
from jobs.use_cases import (
    cancellation,
    clock,
    deletion,
    outbox,
    queries,
    sealing,
    stages,
    verifying,
    workers,
)
from jobs.use_cases.log_signing import Signing
from tests.conftest import RUNTIME, WORKER
from tests.integration.rows import OUTPUT, claim, let_leases_run_out, submit
from tests.servers import PATIENCE, RedisServer

#: More than a sweep takes in one transaction.
JOBS = 120
SWEEPS = 3
SETTINGS: dict[str, Any] = {"model": RUNTIME.model, "model_timeout": 600, "retention_days": 0}


@pytest.fixture
def broker(redis_server: RedisServer) -> Iterator[Any]:
    """A Redis without messages before and after."""
    client = redis.Redis.from_url(redis_server.url, decode_responses=True)
    client.flushdb()
    yield client
    client.flushdb()
    client.close()


def messages(broker: Any) -> list[tuple[str, int]]:
    """Return (job id, stage index) of all waiting messages."""
    queues = [
        key for key in broker.scan_iter(f"{KEY_PREFIX}{QUEUE}*") if broker.type(key) == "list"
    ]
    message_headers = [
        json.loads(text)["headers"] for key in queues for text in broker.lrange(key, 0, -1)
    ]
    return [ast.literal_eval(headers["argsrepr"]) for headers in message_headers]


def duties(
    database: Database, progress: Progress, redis_server: RedisServer, **settings: Any
) -> Maintenance:
    publisher = Publisher(make_app(redis_server.url))
    return Maintenance(database, publisher, progress, **{**SETTINGS, **settings})


def test_concurrent_sweeps_publish_a_job_once(
    database: Database, progress: Progress, redis_server: RedisServer, broker: Any
) -> None:
    """Unpublished questions, released stages, and stages of a dead worker."""
    jobs = [submit(database) for _ in range(JOBS)]
    for number, job in enumerate(jobs):
        if number % 3 == 0:
            outbox.mark_unpublished(database, job.id, 0)
        elif number % 3 == 1:
            stages.release(database, claim(database, job), "the worker shut down")
        else:
            claim(database, job)
    let_leases_run_out(database)
    url = database.engine.url.render_as_string(hide_password=False)
    databases = [Database(url) for _ in range(SWEEPS)]
    processes = [duties(own, progress, redis_server) for own in databases]
    start = threading.Barrier(SWEEPS)

    def sweep(process: Maintenance) -> None:
        start.wait()
        process.sweep()

    threads = [threading.Thread(target=sweep, args=(process,)) for process in processes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    processes[0].sweep()  # one more sweep after all of them
    assert Counter(messages(broker)) == {(job.id, 0): 1 for job in jobs}
    for own in databases:
        own.close()


def test_messages_that_redis_refuses_return_to_the_outbox(
    database: Database, progress: Progress, redis_server: RedisServer, broker: Any
) -> None:
    jobs = [submit(database) for _ in range(3)]
    for job in jobs:
        outbox.mark_unpublished(database, job.id, 0)
    process = duties(database, progress, redis_server)
    publish = process._publisher.publish

    def away(stages: Sequence[NextStage]) -> None:  # a fake fault: Redis goes away in between
        publish(stages[:1])
        raise QueueUnavailableError("away")

    process._publisher.publish = away  # type: ignore[method-assign]  # a fake
    process.sweep()
    with database.engine.connect() as connection:
        unpublished = set(connection.scalars(sa.select(Job.id).where(Job.published_at.is_(None))))
    assert unpublished == {job.id for job in jobs}, "those whose messages came too: nobody can tell"
    process._publisher.publish = publish  # type: ignore[method-assign]  # the original
    process.sweep()
    assert Counter(messages(broker)) == {(job.id, 0): 2 if job is jobs[0] else 1 for job in jobs}, (
        "a duplicate finds nothing to claim"
    )


@pytest.mark.parametrize("fault", ["away", "briefly away", "not writable", "clock"])
def test_after_an_outage_workers_renew_their_leases_first(
    database: Database,
    progress: Progress,
    redis_server: RedisServer,
    broker: Any,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
) -> None:
    """Or after the clock was set. A process sweeps as soon as it starts, since it may replace one that died."""
    lost, renewed = submit(database), submit(database)
    claim(database, lost)
    let_leases_run_out(database)
    now, clock_is_wrong_by = 1000.0, dt.timedelta()
    monkeypatch.setattr("jobs.maintenance.time.monotonic", lambda: now)
    read_clock = partial(clock.now, database)
    monkeypatch.setattr("jobs.clock_watch.clock.now", lambda _: read_clock() + clock_is_wrong_by)
    process = duties(database, progress, redis_server)
    assert not process.sweep()
    assert messages(broker) == [(lost.id, 0)]

    token = claim(database, renewed).lease_token
    let_leases_run_out(database)
    if fault == "clock":
        clock_is_wrong_by += dt.timedelta(seconds=60)
    elif fault == "not writable":
        refusal = OperationalError("UPDATE jobs", {}, Exception("read-only"))
        with monkeypatch.context() as refusing:
            refusing.setattr("jobs.maintenance.sweeping.sweep", Mock(side_effect=refusal))
            with pytest.raises(OperationalError):
                process.sweep()
    else:
        # No worker reached the database meanwhile. The last heartbeat may have been a while before.
        now += 60 if fault == "away" else LEASE - HEARTBEAT_INTERVAL + 1
    assert process.sweep(), "it asks to be called again soon"
    workers.heartbeat(database, WORKER, [(renewed.id, token)])
    now += HEARTBEAT_INTERVAL
    assert not process.sweep()
    assert messages(broker) == [(lost.id, 0)]
    assert workers.held_leases(database, WORKER) == {(renewed.id, token)}


def test_maintenance_without_a_worker_publishes_for_ready_workers(
    database: Database, progress: Progress, redis_server: RedisServer, broker: Any
) -> None:
    """As in `helixq maintain`."""
    started = submit(database)
    stages.record(database, claim(database, started), OUTPUT)
    outbox.mark_unpublished(database, started.id, 1)
    waiting = submit(database)
    outbox.mark_unpublished(database, waiting.id, 0)
    process = duties(database, progress, redis_server, model=None)
    process.sweep()
    assert messages(broker) == [(waiting.id, 0)], "no worker has the other one's model"
    workers.set_state(database, WORKER, WorkerState.READY)
    process.sweep()
    assert Counter(messages(broker)) == {(waiting.id, 0): 1, (started.id, 1): 1}


def test_ended_jobs_are_sealed(
    database: Database, progress: Progress, redis_server: RedisServer
) -> None:
    process = duties(database, progress, redis_server)
    assert not process.seal()
    for _ in range(sealing.MAX_JOBS):
        cancellation.cancel(database, ANONYMOUS, submit(database).id)
    assert process.seal(), "there may be more"
    assert not process.seal()
    assert verifying.verify(database, history).jobs == sealing.MAX_JOBS


def test_many_deletions_are_sealed_at_once(
    database: Database, progress: Progress, redis_server: RedisServer
) -> None:
    process = duties(database, progress, redis_server)
    for _ in range(sealing.MAX_JOBS):
        cancellation.cancel(database, ANONYMOUS, submit(database).id)
    process.seal()
    for job in queries.list_jobs(database, ANONYMOUS, PageRequest(sealing.MAX_JOBS))[0]:
        deletion.delete(database, ANONYMOUS, job.id)
    assert process.seal(), "there may be more"
    assert not process.seal()
    assert verifying.verify(database, history).entries == 2 * sealing.MAX_JOBS


def test_a_running_process_seals_within_seconds(
    database: Database, progress: Progress, redis_server: RedisServer
) -> None:
    process = duties(database, progress, redis_server)
    process.start()
    cancellation.cancel(database, ANONYMOUS, submit(database).id)
    ended_at = time.monotonic()
    while sealing.any_pending(database):
        assert time.monotonic() < ended_at + PATIENCE
        time.sleep(0.05)  # there is no event for an entry of the log
    process.stop()
    assert verifying.verify(database, history).jobs == 1


def test_the_write_ahead_log_is_copied_into_the_file(tmp_path: Path) -> None:
    """A writer does so only when the log is four times as long as by default: it is held up for that long."""
    file, copy = tmp_path / "jobs.sqlite3", tmp_path / "copy.sqlite3"
    database = Database(f"sqlite:///{file}")
    migrations.migrate(database.engine)
    with closing(sqlite3.connect(file)) as reader:
        [pages] = reader.execute("PRAGMA wal_autocheckpoint").fetchone()
    with database.read() as connection:
        assert connection.scalar(sa.text("PRAGMA wal_autocheckpoint")) == 4 * pages
    job = submit(database)
    database.checkpoint_wal()  # as a duty does it
    shutil.copy(file, copy)  # Without the log.
    with closing(sqlite3.connect(copy)) as found:
        assert found.execute("SELECT id FROM jobs").fetchall() == [(job.id,)]
    database.close()


def test_it_is_said_once_that_the_log_cannot_be_signed(
    database: Database,
    progress: Progress,
    redis_server: RedisServer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    given = Signing(Signer.generate("example.com/log"))
    cancellation.cancel(database, ANONYMOUS, submit(database).id)
    duties(database, progress, redis_server, signing=given).seal()
    cancellation.cancel(database, ANONYMOUS, submit(database).id)
    process = duties(database, progress, redis_server)
    assert not process.seal()
    assert not process.seal()
    [said] = [record.message for record in caplog.records if record.levelname == "ERROR"]
    assert said.endswith("the log is signed with a HELIXQ_LOG_KEY: give it to this process too")


def test_old_jobs_are_cleaned_up(
    database: Database, progress: Progress, redis_server: RedisServer
) -> None:
    for _ in range(3):
        cancellation.cancel(database, ANONYMOUS, submit(database).id)
    with database.engine.begin() as connection:
        connection.execute(sa.update(Job).values(finished_at=utcnow(-3 * 86_400)))
    process = duties(database, progress, redis_server, retention_days=2)
    assert not process.clean_up(), "nothing is left to do"
    assert queries.list_jobs(database, ANONYMOUS, PageRequest(1))[0] == []
