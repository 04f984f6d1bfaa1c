"""Liveness and readiness."""

from __future__ import annotations

from jobs.models import WorkerState
from jobs.store import Store
from tests.conftest import WORKER
from tests.integration.web.client import Client


def test_ready_means_database_redis_and_a_worker(web: Client, store: Store) -> None:
    assert web.get("/healthz").json == {"status": "ok"}
    reply = web.get("/readyz")
    assert reply.status_code == 503
    assert reply.json["checks"]["worker"] == "a worker loads its model"
    store.set_worker_state(WORKER, WorkerState.STOPPED)
    assert web.get("/readyz").json["checks"]["worker"] == "no worker is ready"
    store.set_worker_state(WORKER, WorkerState.READY)
    assert web.get("/readyz").json["checks"] == {
        "database": "ok",
        "redis": "ok",
        "worker": "ok",
    }
