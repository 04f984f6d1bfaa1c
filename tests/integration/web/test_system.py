"""What runs and what waits: `GET /api/system`, and the places of jobs in the queue."""

from __future__ import annotations

import datetime as dt
from types import SimpleNamespace
from typing import Any, Self

import pytest
import sqlalchemy as sa

from jobs.database import Database
from jobs.database_clock import utcnow
from jobs.models import ANONYMOUS, Worker, WorkerState
from jobs.use_cases import stages, standing, sweeping, workers
from tests.conftest import WORKER
from tests.integration.rows import let_leases_run_out
from tests.integration.web.client import Client, ask, finish
from web.api import routes


def test_a_waiting_job_has_a_place_by_priority_and_age(web: Client, database: Database) -> None:
    first, second = ask(web)["id"], ask(web)["id"]
    urgent, idle = ask(web, priority=9)["id"], ask(web, priority=0)["id"]

    def place(job_id: str) -> Any:
        return web.get(f"/api/jobs/{job_id}/place").json

    assert [place(i)["place"] for i in (urgent, first, second, idle)] == [1, 2, 3, 4]
    assert place(idle) == {
        "status": "queued",
        "place": 4,
        "queued": 4,
        "ready_workers": 0,
        "wait": None,
        "paused": None,
    }
    workers.set_state(database, WORKER, WorkerState.READY)
    finish(database, first, 1)
    assert (place(second)["place"], place(second)["ready_workers"]) == (2, 1)
    assert (place(first)["status"], place(first)["place"]) == ("in_progress", None)
    assert web.get("/api/jobs/resp_none/place").status_code == 404


def test_a_wait_is_by_the_clock_of_the_database(
    web: Client, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Behind(dt.datetime):
        @classmethod
        def now(cls, tz: dt.tzinfo | None = None) -> Self:
            return super().now(tz) - dt.timedelta(hours=1)

    clock = SimpleNamespace(datetime=Behind, timedelta=dt.timedelta, UTC=dt.UTC)
    monkeypatch.setattr(routes, "dt", clock, raising=False)
    workers.set_state(database, WORKER, WorkerState.READY)
    for _ in range(standing.MIN_SAMPLE):
        assert web.post(f"/v1/responses/{ask(web)['id']}/cancel").status_code == 200
    waiting = ask(web)["id"]
    wait = web.get(f"/api/jobs/{waiting}/place").json["wait"]
    assert 0 <= wait < standing.MAX_AGE.total_seconds()


def test_the_system_is_described(web: Client, database: Database) -> None:
    workers.set_state(database, WORKER, WorkerState.READY)
    done, lost, released = (ask(web)["id"] for _ in range(3))
    finish(database, done)
    ask(web)
    stages.claim(database, lost, 0, WORKER, job_timeout=60)
    let_leases_run_out(database)
    sweeping.sweep(database)
    claim = stages.claim(database, released, 0, WORKER, job_timeout=60)
    assert claim is not None
    stages.release(database, claim, "it shuts down")
    assert stages.claim(database, released, 0, WORKER, job_timeout=60) is not None
    told = web.get("/api/system").json
    (worker,) = told["workers"]
    assert (worker["id"], worker["state"], worker["running"]) == (WORKER, "ready", 1)
    assert (worker["context"], worker["slots"]) == (4096, None)
    queue = told["queue"]
    assert (queue["queued"], queue["oldest_at"] is not None) == (1, True)
    assert queue["stages"]["actor"] == {"running": 1, "waiting": 1}
    assert queue["stages"]["critic"] == {"running": 0, "waiting": 0}
    assert queue["owners"] == [{"owner": ANONYMOUS, "queued": 1, "in_progress": 2}]
    assert told["attempts"] == {"last": 6, "lost": 1, "released": 1}
    assert told["webhooks"] == {"pending": 0}
    assert (told["log"]["size"], told["log"]["unsealed"]) == (0, 1)
    with database.engine.begin() as connection:
        connection.execute(sa.update(Worker).values(seen_at=utcnow(-60)))
    assert web.get("/api/system").json["workers"][0]["state"] == "lost"
    workers.set_state(database, WORKER, WorkerState.STOPPED)
    assert web.get("/api/system").json["workers"] == []
