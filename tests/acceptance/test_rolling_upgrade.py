"""A rolling upgrade to another model: each job has one model."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests import servers
from tests.acceptance.conftest import Service, running
from tests.acceptance.test_kills import DOOMED
from tests.conftest import new_database

JOBS = 12
TOKENS = 8
#: The dtypes of the old workers and of the new ones.
OLD, NEW = "float32", "bfloat16"


@pytest.fixture(params=["sqlite", "postgresql"])
def service(
    request: pytest.FixtureRequest, checkpoint: Path, socket_folder: Path, tmp_path: Path
) -> Iterator[Service]:
    database = new_database(request.param, request, tmp_path)
    folder = socket_folder / f"upgrade-{request.param}"
    settings = {"HELIXQ_SLOTS": "2", "HELIXQ_MODEL_TIMEOUT": "1", "HELIXQ_DTYPE": OLD}
    with running(checkpoint, database, folder, **settings) as running_service:
        yield running_service


def attempts(service: Service, job_id: str) -> list[tuple[int, int, str, str]]:
    history: Any = service.history(job_id)
    return [
        (a["run"], a["position"], a["status"], a["worker"]["dtype"]) for a in history["attempts"]
    ]


def read(service: Service, job_id: str) -> dict[int, dict[str, Any]]:
    """Read a job's events to the end; return them by sequence number."""
    events = {}
    with service.http() as http, http.stream("GET", f"/v1/responses/{job_id}?stream=true") as reply:
        for line in reply.iter_lines():
            if line.startswith("data: "):
                event = json.loads(line.removeprefix("data: "))
                events[event["sequence_number"]] = event
    return events


def test_a_job_has_one_model_and_restarts_when_it_is_gone(service: Service) -> None:
    upgraded = {**service.environ, "HELIXQ_DTYPE": NEW}
    new = servers.worker(upgraded)
    new.wait_for("ready: ")
    jobs = [service.submit("Go on", max_output_tokens=TOKENS) for _ in range(JOBS)]
    shares = Counter[str]()
    for job_id in jobs:
        assert service.wait(job_id)["status"] in ("completed", "incomplete")
        [dtype] = {dtype for *_, dtype in attempts(service, job_id)}
        assert attempts(service, job_id) == [(1, p, "finished", dtype) for p in range(3)]
        shares[dtype] += 1
    assert set(shares) == {OLD, NEW}, "both models had jobs"

    # The last old worker dies during a critique.
    for worker in (new, service.worker):
        worker.stop()
    service.worker = servers.worker(service.environ, (*DOOMED, "generated"))
    service.worker.wait_for("ready: ")
    job_id = service.submit("Go on", max_output_tokens=TOKENS)
    with ThreadPoolExecutor() as pool:
        reader = pool.submit(read, service, job_id)
        service.worker.wait_for("^dying$")
        service.worker.stop()
        before: Any = service.history(job_id)
        service.worker = servers.worker(upgraded)
        service.worker.wait_for(f"{job_id}: its worker stopped responding")
        service.worker.wait_for(f"{job_id}: no worker with its model came back")
        assert service.wait(job_id)["status"] in ("completed", "incomplete")
        live = reader.result()
    assert attempts(service, job_id) == [
        (1, 0, "finished", OLD),
        (1, 1, "lost", OLD),
        (2, 0, "finished", NEW),
        (2, 1, "finished", NEW),
        (2, 2, "finished", NEW),
    ]
    after: Any = service.history(job_id)
    assert after["attempts"][0] == before["attempts"][0], "finished stages are unchanged"
    [restart] = after["restarts"]
    assert (restart["run"], restart["model_before"]) == (2, before["model"])
    late = read(service, job_id)
    assert {number: live.get(number) for number in late} == late
    gone = [event for number, event in live.items() if number not in late]
    assert {event["type"] for event in gone} <= {
        "response.reasoning_summary_text.delta",
        "response.reasoning_text.delta",
    }
