"""Polls show every change of a job, and cost a query of one row while there is none."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa

from jobs.database import Database
from jobs.database_clock import utcnow
from jobs.models import ANONYMOUS, Job, Scope, WorkerState
from jobs.use_cases import cancellation, keys, restarting, stages, sweeping, workers
from jobs.use_cases.workers import Runtime
from tests.conftest import new_database
from tests.executed_statements import executed, reads
from tests.integration.rows import OUTPUT, claim, let_leases_run_out, submit
from tests.integration.web.client import Client, ask, services_of, serving
from tests.servers import RedisServer
from web.v1 import replies


def poll(web: Client, job_id: str) -> dict[str, Any]:
    """Poll a job twice; return its response."""
    first, second = (web.get(f"/v1/responses/{job_id}") for _ in range(2))
    assert (first.status_code, first.data) == (200, second.data)
    assert first.headers["ETag"] == second.headers["ETag"]
    assert first.headers.get("Retry-After") == second.headers.get("Retry-After")
    response: dict[str, Any] = first.json
    return response


def test_polls_show_every_change(web: Client, database: Database) -> None:
    job = submit(database)
    assert poll(web, job.id)["status"] == "queued"
    for stage_index in range(3):
        claimed = claim(database, job, stage_index)
        shown = poll(web, job.id)
        assert (shown["status"], len(shown["output"])) == ("in_progress", stage_index)
        stages.record(database, claimed, OUTPUT)
        assert len(poll(web, job.id)["output"]) == stage_index + 1
    assert poll(web, job.id)["status"] == "completed"

    job = submit(database)
    poll(web, job.id)
    stages.fail(database, claim(database, job), "server_error", "a fault")
    assert poll(web, job.id)["error"] == {"code": "server_error", "message": "a fault"}

    job = submit(database)
    poll(web, job.id)
    cancellation.cancel(database, ANONYMOUS, job.id)
    assert poll(web, job.id)["status"] == "cancelled"


def test_polls_show_a_restart_and_an_end_by_the_sweep(web: Client, database: Database) -> None:
    job = submit(database)
    stages.record(database, claim(database, job), OUTPUT)
    assert len(poll(web, job.id)["output"]) == 1
    other = Runtime({"engine": "other"}, 4096, "{}")
    workers.register(database, "worker-2", "localhost", 2, other)
    workers.set_state(database, "worker-2", WorkerState.READY)
    assert restarting.restart_jobs(database, 0) == [job.id]
    shown = poll(web, job.id)
    assert (shown["run"], shown["output"]) == (2, [])

    claim(database, job, worker="worker-2")
    let_leases_run_out(database)
    sweeping.sweep(database)
    poll(web, job.id)
    with database.engine.begin() as connection:
        connection.execute(sa.update(Job).values(deadline_at=utcnow(-60)))
    sweeping.sweep(database)
    assert poll(web, job.id)["error"]["code"] == "deadline_exceeded"


def interval(web: Client, job_id: str, **headers: str) -> str | None:
    """Poll a job; return after how many seconds to poll it again."""
    reply = web.get(f"/v1/responses/{job_id}", headers=headers)
    assert reply.status_code == (304 if headers else 200)
    seconds: str | None = reply.headers.get("Retry-After")
    return seconds


def test_the_longer_nothing_changes_the_later_the_next_poll_is_due(
    web: Client, database: Database
) -> None:
    def age(**seconds: float) -> None:
        """Move times of the job back."""
        with database.engine.begin() as connection:
            times = {name: utcnow(-number) for name, number in seconds.items()}
            connection.execute(sa.update(Job).where(Job.id == job.id).values(times))
        web.application.extensions["helixq.replies"]._kept.clear()

    job = submit(database)
    assert interval(web, job.id) == "1"
    age(ready_at=15)
    assert interval(web, job.id) == "1"
    age(ready_at=65)
    assert interval(web, job.id) == "6"
    tag = web.get(f"/v1/responses/{job.id}").headers["ETag"]
    assert interval(web, job.id, if_none_match=tag) == "6"
    age(ready_at=86400)
    assert interval(web, job.id) == "15"
    # It has begun, after a day in the queue.
    claimed = claim(database, job)
    assert interval(web, job.id) == "1"
    age(started_at=45)
    assert interval(web, job.id) == "4"
    # The next stage has begun.
    stages.record(database, claimed, OUTPUT)
    assert interval(web, job.id) == "1"
    # The host's clock is not the database's.
    age(started_at=-30, ready_at=-30)
    assert interval(web, job.id) == "1"
    cancellation.cancel(database, ANONYMOUS, job.id)
    assert interval(web, job.id) is None


def test_a_poll_without_news_is_a_query_of_one_row(web: Client) -> None:
    job_id = ask(web)["id"]
    web.get(f"/v1/responses/{job_id}")
    with executed() as statements:
        web.get(f"/v1/responses/{job_id}")
    [statement] = reads(statements)
    assert "attempts" not in statement


def test_what_is_kept_is_bounded(
    web: Client, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = web.application.extensions["helixq.replies"]
    jobs = [submit(database) for _ in range(5)]
    size = len(web.get(f"/v1/responses/{jobs[0].id}").data)
    monkeypatch.setattr(replies, "MAX_BYTES", 3 * size)
    for job in jobs:
        assert poll(web, job.id)["id"] == job.id
    assert list(kept._kept) == [job.id for job in jobs[2:]]
    assert kept._bytes == 3 * size


def test_what_nobody_asks_for_is_not_kept(
    web: Client, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = web.application.extensions["helixq.replies"]
    polled, forgotten, last = [submit(database).id for _ in range(3)]
    poll(web, polled)
    poll(web, forgotten)
    monkeypatch.setattr(replies, "MAX_AGE", 60.0)
    monkeypatch.setattr(replies, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + 40))
    poll(web, polled)
    monkeypatch.setattr(replies, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + 80))
    size = len(web.get(f"/v1/responses/{last}").data)
    assert list(kept._kept) == [polled, last]
    assert kept._bytes == size + len(web.get(f"/v1/responses/{polled}").data)


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_what_is_kept_is_shown_to_nobody_else(
    kind: str, request: pytest.FixtureRequest, redis_server: RedisServer, tmp_path: Any
) -> None:
    with serving(new_database(kind, request, tmp_path), redis_server.url, AUTH="required") as web:
        database = services_of(web).database
        alice, bob = (
            {"Authorization": f"Bearer {keys.create(database, name, [Scope.ASK])[1]}"}
            for name in ("alice", "bob")
        )
        asked = web.post("/v1/responses", json={"input": "Why?", "background": True}, headers=alice)
        path = f"/v1/responses/{asked.json['id']}"
        assert web.get(path, headers=alice).status_code == 200
        assert web.get(path, headers=bob).status_code == 404
        assert web.delete(path, headers=alice).status_code == 200
        assert web.get(path, headers=alice).status_code == 404
