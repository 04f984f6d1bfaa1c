"""Workers whose engine is a server elsewhere: real workers, without PyTorch."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.pipeline import Role
from tests import vllm as fake
from tests.acceptance.conftest import Service, running
from tests.conftest import new_database
from tests.vllm import KEY, NAMES, VLLM

#: A worker where PyTorch cannot be imported.
WITHOUT_PYTORCH = (sys.executable, "-m", "tests.acceptance.without_pytorch")


@pytest.fixture(scope="module")
def vllm() -> Iterator[VLLM]:
    server = VLLM()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def service(
    request: pytest.FixtureRequest,
    vllm: VLLM,
    checkpoint: Path,
    socket_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Service]:
    """A service without a tokenizer: only the server counts tokens."""
    folder = socket_folder / "elsewhere"
    database = new_database("postgresql", request, tmp_path_factory.mktemp("db"))
    settings = vllm.settings(HELIXQ_BASE_MODEL="", HELIXQ_SLOTS="2")
    with running(checkpoint, database, folder, program=WITHOUT_PYTORCH, **settings) as service:
        yield service


def attempts(history: dict[str, Any]) -> list[tuple[int, str]]:
    return [(a["position"], a["status"]) for a in history["attempts"]]


def test_a_job_runs_all_its_stages_there(service: Service, vllm: VLLM) -> None:
    vllm.bodies.clear()
    job = service.submit("What is 1 + 1?", seed=7)
    response: Any = service.wait(job)
    assert response["status"] == "completed"
    history: Any = service.history(job)
    text = "".join(vllm.text)
    assert [b["model"] for b in vllm.bodies] == [NAMES[role] for role in Role]
    for body, attempt in zip(vllm.bodies, history["attempts"], strict=True):
        assert body["prompt"] == attempt["prompt"]
        assert body["seed"] == attempt["seed"]
        assert attempt["output"] == text
        assert attempt["output_tokens"] == 5
        assert attempt["prompt_tokens"] == len(attempt["prompt"].split())
        assert attempt["finish_reason"] == "stop"
        assert attempt["started_at"] <= attempt["first_token_at"] <= attempt["finished_at"]
    assert text in vllm.bodies[1]["prompt"]
    worker = history["attempts"][0]["worker"]
    assert worker["engine"] == "openai"
    assert worker["served"]["critic"]["root"] == "/adapters/critic"
    assert worker["servers"][vllm.url]["version"] == "0.11.0"
    assert "digest" not in worker["adapters"]["actor"]
    with service.http() as http:
        assert http.get("/api/jobs", params={"adapter": NAMES[Role.ACTOR]}).status_code == 200
        page = http.get(f"/jobs/{job}").text
        assert "helix-actor" in page
    # Too long for the server, which nobody else can know.
    long = service.submit("word " * 5000)
    response = service.wait(long)
    assert response["status"] == "failed"
    assert response["error"]["code"] == "context_length_exceeded"
    assert KEY not in service.worker.output + str(history) + page


def test_a_cancel_ends_the_servers_work_within_a_second(service: Service, vllm: VLLM) -> None:
    vllm.go_on.clear()
    vllm.closed.clear()
    job = service.submit("What is 1 + 1?")
    service.wait_for_text(job)
    with service.http() as http:
        start_time = time.monotonic()
        assert http.post(f"/v1/responses/{job}/cancel").json()["status"] == "cancelled"
        assert vllm.closed.wait(5)
        assert time.monotonic() - start_time < 1.5, "one second, and what two busy cores add"
    vllm.go_on.set()
    service.worker.wait_for(f"{job}: actor stopped")
    history: Any = service.history(job)
    assert attempts(history) == [(0, "cancelled")]
    assert history["attempts"][0]["output"] == " The"
    assert history["attempts"][0]["output_tokens"] is None


def test_a_worker_that_is_killed_and_a_server_that_breaks_off_lose_nothing(
    service: Service, vllm: VLLM
) -> None:
    vllm.go_on.clear()
    vllm.closed.clear()
    killed = service.submit("What is 1 + 1?")
    service.wait_for_text(killed)
    service.worker.kill()
    assert vllm.closed.wait(5)
    vllm.go_on.set()
    vllm.replies = [fake.cut]
    service.start_worker()
    broken = service.submit("What is 1 + 1?")
    service.worker.wait_for(f"{broken}: actor runs again")
    for job, first in ((broken, "released"), (killed, "lost")):
        assert service.wait(job)["status"] == "completed"
        assert attempts(service.history(job)) == [
            (0, first),
            (0, "finished"),
            (1, "finished"),
            (2, "finished"),
        ]
    assert "Traceback" not in service.worker.output


def test_a_worker_whose_server_serves_another_model_fails_so_that_it_is_restarted(
    service: Service, vllm: VLLM
) -> None:
    vllm.root = "/other"
    service.worker.wait_for("stopping: .*; the next start registers what they serve now")
    assert service.worker.wait() == os.EX_TEMPFAIL
    service.start_worker()
