"""What the workers' sweeps publish together: real stores and a real Redis, both databases."""

from __future__ import annotations

import ast
import json
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any
from unittest.mock import Mock

import pytest
import redis
import sqlalchemy as sa

from jobs.db import utcnow
from jobs.models import Job
from jobs.progress import Progress
from jobs.queue import KEY_PREFIX, QUEUE, Doorbell, QueueUnavailableError, make_app
from jobs.store import Store
from tests.conftest import RUNTIME, WORKER
from tests.integration.rows import claim, let_leases_run_out, submit
from tests.servers import RedisServer
from worker.rescue import Rescue

#: More than a sweep takes at a time.
JOBS = 120
SWEEPS = 3
SETTINGS: dict[str, Any] = {"model": RUNTIME.model, "model_timeout": 600, "retention_days": 0}


@pytest.fixture
def broker(redis_server: RedisServer) -> Iterator[Any]:
    """Redis without messages, before and after."""
    client = redis.Redis.from_url(redis_server.url, decode_responses=True)
    client.flushdb()
    yield client
    client.flushdb()
    client.close()


def messages(broker: Any) -> list[tuple[str, int]]:
    """Return the (job id, position) of all messages that wait."""
    queues = [
        key for key in broker.scan_iter(f"{KEY_PREFIX}{QUEUE}*") if broker.type(key) == "list"
    ]
    found = [json.loads(text)["headers"] for key in queues for text in broker.lrange(key, 0, -1)]
    return [ast.literal_eval(headers["argsrepr"]) for headers in found]


def rescuer(store: Store, progress: Progress, redis_server: RedisServer) -> Rescue:
    runner = Mock(running=[])  # it runs nothing: only its sweeps are looked at
    doorbell = Doorbell(make_app(redis_server.url))
    rescue = Rescue(store, doorbell, progress, runner, WORKER, **SETTINGS)
    rescue._heartbeat()
    return rescue


def test_of_many_sweeps_one_publishes_a_job(
    store: Store, progress: Progress, redis_server: RedisServer, broker: Any
) -> None:
    """Questions that Redis did not take, stages given back, and stages of a worker that died."""
    jobs = [submit(store) for _ in range(JOBS)]
    for number, job in enumerate(jobs):
        if number % 3 == 0:
            store.unpublish(job.id, 0)
        elif number % 3 == 1:
            store.release(claim(store, job), "the worker shut down")
        else:
            claim(store, job)
    let_leases_run_out(store)
    stores = [Store(store.engine.url.render_as_string(hide_password=False)) for _ in range(SWEEPS)]
    rescuers = [rescuer(each, progress, redis_server) for each in stores]
    start = threading.Barrier(SWEEPS)

    def sweep(rescue: Rescue) -> None:
        start.wait()
        rescue._sweep()

    threads = [threading.Thread(target=sweep, args=(rescue,)) for rescue in rescuers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rescuers[0]._sweep()  # one that came a moment later than all of them
    assert Counter(messages(broker)) == {(job.id, 0): 1 for job in jobs}
    for each in stores:
        each.close()


def test_what_redis_refuses_goes_back_to_the_outbox(
    store: Store, progress: Progress, redis_server: RedisServer, broker: Any
) -> None:
    jobs = [submit(store) for _ in range(3)]
    for job in jobs:
        store.unpublish(job.id, 0)
    rescue = rescuer(store, progress, redis_server)
    publish = rescue._doorbell.publish

    def flaky(job_id: str, **named: Any) -> None:  # a fake fault: Redis goes away at the second
        if job_id == jobs[1].id:
            raise QueueUnavailableError("away")
        publish(job_id, **named)

    rescue._doorbell.publish = flaky  # type: ignore[method-assign]  # the fake
    rescue._sweep()
    with store.engine.connect() as connection:
        outbox = set(connection.scalars(sa.select(Job.id).where(Job.published_at.is_(None))))
    assert outbox == {jobs[1].id, jobs[2].id}
    rescue._doorbell.publish = publish  # type: ignore[method-assign]  # the real one
    rescue._sweep()
    assert Counter(messages(broker)) == {(job.id, 0): 1 for job in jobs}


def test_a_sweep_waits_for_the_heartbeat_and_no_longer(
    store: Store, progress: Progress, redis_server: RedisServer, broker: Any
) -> None:
    """A worker that has just started takes back what ran out: it need not wait for a second sweep."""
    job = submit(store)
    claim(store, job)
    let_leases_run_out(store)
    runner = Mock(running=[])
    doorbell = Doorbell(make_app(redis_server.url))
    rescue = Rescue(store, doorbell, progress, runner, WORKER, **SETTINGS)
    assert rescue._sweep(), "it asks to be called again soon"
    assert messages(broker) == []
    rescue._heartbeat()
    assert not rescue._sweep()
    assert messages(broker) == [(job.id, 0)]


def test_old_jobs_are_cleaned_up(
    store: Store, progress: Progress, redis_server: RedisServer
) -> None:
    for _ in range(3):
        store.cancel(submit(store).id)
    with store.engine.begin() as connection:
        connection.execute(sa.update(Job).values(finished_at=utcnow(-3 * 86_400)))
    runner, doorbell = Mock(running=[]), Doorbell(make_app(redis_server.url))
    rescue = Rescue(store, doorbell, progress, runner, WORKER, **{**SETTINGS, "retention_days": 2})
    assert not rescue._clean(), "nothing is left to do"
    assert store.page(limit=1)[0] == []
