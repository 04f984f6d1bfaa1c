"""kill -9 at every point of a job: one final status, no finished stage runs again, and the history has all attempts."""

from __future__ import annotations

import datetime as dt
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests import servers
from tests.acceptance.conftest import Service, running
from tests.conftest import new_database
from tests.servers import PROGRAM

#: Seconds until a job goes on after a worker is ready.
RECOVERY = 30.0
#: A program that kills itself at a given point.
DOOMED = (sys.executable, "-m", "tests.acceptance.doomed")
FINISHED = [(0, "finished"), (1, "finished"), (2, "finished")]
#: The point where the process dies, and the attempts that the history must have.
POINTS = {
    "queued": FINISHED,
    "popped": FINISHED,
    "prefill": [(0, "finished"), (1, "lost"), (1, "finished"), (2, "finished")],
    "decode": [(0, "finished"), (1, "lost"), (1, "finished"), (2, "finished")],
    "generated": [(0, "finished"), (1, "lost"), (1, "finished"), (2, "finished")],
    "recorded": FINISHED,
    "done": FINISHED,
}


def attempts(service: Service, job_id: str) -> list[Any]:
    history: Any = service.history(job_id)
    listed: list[Any] = history["attempts"]
    return listed


@pytest.fixture(params=["sqlite", "postgresql"])
def databases(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """An empty database for each point, all of one kind."""
    folders = {point: tmp_path_factory.mktemp(point) for point in POINTS}
    return {point: new_database(request.param, request, folders[point]) for point in POINTS}


def test_a_worker_killed_anywhere_loses_no_job(
    databases: dict[str, str], checkpoint: Path, socket_folder: Path, request: pytest.FixtureRequest
) -> None:
    """Each point has a service of its own. All are killed and recover at the same time."""
    kind = request.node.callspec.params["databases"]

    def live(point: str) -> None:
        folder = socket_folder / f"kill-{kind}-{point}"
        program = PROGRAM if point == "queued" else (*DOOMED, point)
        with running(checkpoint, databases[point], folder, first_program=program) as service:
            _kill_at(service, point)

    with ThreadPoolExecutor(len(POINTS)) as pool:
        for done in [pool.submit(live, point) for point in POINTS]:
            done.result()


def _kill_at(service: Service, point: str) -> None:
    if point == "queued":
        service.worker.kill()
    job_id = service.submit("What is 1 + 1?", max_output_tokens=8, temperature=0)
    if point != "queued":
        service.worker.wait_for("^dying$")
        service.worker.wait()
    before = attempts(service, job_id)
    if point == "done":
        assert service.wait(job_id)["status"] in ("completed", "incomplete"), (
            "everything was stored"
        )
    service.start_worker()
    restarted_at = dt.datetime.now(dt.UTC)
    final = service.wait(job_id)
    assert final["status"] in ("completed", "incomplete"), point
    after = attempts(service, job_id)
    for attempt in after[len(before) :][:1]:
        went_on_at = dt.datetime.fromisoformat(attempt["started_at"])
        assert (went_on_at - restarted_at).total_seconds() < RECOVERY, point
    assert [(a["position"], a["status"]) for a in after] == POINTS[point], point
    for old, new in zip(before, after, strict=False):
        if old["status"] == "finished":
            assert old == new, "finished stages are unchanged"


def test_a_web_killed_before_it_published_loses_no_job(service: Service) -> None:
    """The client got no reply. It retries with its idempotency key, and gets the same job."""
    service.web.stop()
    doomed = servers.web(service.environ, (*DOOMED, "committed"))
    doomed.wait_for("listening")
    body = {"input": "What is 1 + 1?", "max_output_tokens": 8, "background": True}
    headers = {"Idempotency-Key": "kill-before-publish"}
    with service.http() as http, pytest.raises(httpx2.TransportError):
        http.post("/v1/responses", json=body, headers=headers)
    doomed.wait_for("^dying$")  # the process that serves; its parent would start another doomed one
    doomed.stop()
    service.web = servers.web(service.environ)
    service.web.wait_for("listening")
    with service.http() as http:
        reply = http.post("/v1/responses", json=body, headers=headers)
        job_id = str(reply.json()["id"])
        assert service.wait(job_id)["status"] in ("completed", "incomplete")
        listed = http.get("/v1/responses").json()["data"]
    assert [job["id"] for job in listed] == [job_id]
    assert [(a["position"], a["status"]) for a in attempts(service, job_id)] == FINISHED
