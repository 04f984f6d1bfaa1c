"""Liveness and readiness."""

from __future__ import annotations

from jobs.database import Database
from jobs.models import WorkerState
from jobs.use_cases import workers
from tests.conftest import WORKER
from tests.integration.web.client import Client


def test_ready_means_database_redis_and_a_worker(web: Client, database: Database) -> None:
    assert web.get("/healthz").json == {"status": "ok"}
    reply = web.get("/readyz")
    assert reply.status_code == 503
    assert reply.json["checks"]["worker"] == "a worker loads its model"
    workers.set_state(database, WORKER, WorkerState.STOPPED)
    assert web.get("/readyz").json["checks"]["worker"] == "no worker is ready"
    workers.set_state(database, WORKER, WorkerState.READY)
    assert web.get("/readyz").json["checks"] == {
        "database": "ok",
        "redis": "ok",
        "worker": "ok",
    }
