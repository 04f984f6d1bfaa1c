"""What runs and what waits: the places of jobs in the queue."""

from __future__ import annotations

from typing import Any

from jobs.database import Database
from jobs.models import WorkerState
from jobs.use_cases import workers
from tests.conftest import WORKER
from tests.integration.web.client import Client, ask, finish
from tests.integration.web.with_keys import code, program


def test_a_waiting_job_has_a_place_by_priority_and_age(web: Client, database: Database) -> None:
    first, second = ask(web)["id"], ask(web)["id"]
    urgent, idle = ask(web, priority=9)["id"], ask(web, priority=0)["id"]

    def place(job_id: str) -> Any:
        return web.get(f"/api/jobs/{job_id}/place").json

    assert [place(i)["place"] for i in (urgent, first, second, idle)] == [1, 2, 3, 4]
    assert place(idle) == {"status": "queued", "place": 4, "queued": 4, "ready_workers": 0}
    workers.set_state(database, WORKER, WorkerState.READY)
    finish(database, first, 1)
    assert place(second) == {"status": "queued", "place": 2, "queued": 3, "ready_workers": 1}
    assert place(first) == {"status": "in_progress", "place": None, "queued": 0, "ready_workers": 1}
    assert web.get("/api/jobs/resp_none/place").status_code == 404


def test_a_place_is_its_owners(app: Any) -> None:
    alice, bob = program(app), program(app)
    path = f"/api/jobs/{ask(alice)['id']}/place"
    assert alice.get(path).status_code == 200
    assert bob.get(path).status_code == 404
    assert code(app.test_client().get(path)) == (401, "missing_api_key")
