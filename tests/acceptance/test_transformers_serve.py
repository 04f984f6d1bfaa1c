"""An engine elsewhere that nobody here wrote: `transformers serve`, on a CPU, with the demo's roles as merged models."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs import settings
from jobs.pipeline import Role, Sampling
from jobs.settings import DEMO_CHECKPOINT
from tests.acceptance.conftest import Service, running
from tests.conftest import new_database, start_engine
from tests.forked import Forked
from tests.servers import PATIENCE, Process, free_port
from worker.engine.interface import Request
from worker.lora.merge import merge

SERVE = (sys.executable, "-m", "transformers.cli.transformers", "serve")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a merged model for each role."""
    folder = tmp_path_factory.mktemp("merged")
    for role in Role:
        merge(DEMO_CHECKPOINT / "base", DEMO_CHECKPOINT / role, folder / role, force=True)
    return folder


@pytest.fixture(scope="module")
def url(models: Path) -> Iterator[str]:
    """The address of the server."""
    port = str(free_port())
    arguments = ["--host", "127.0.0.1", "--port", port, "--device", "cpu", "--dtype", "float32"]
    # An empty cache of the hub, of which it lists the models: its list is an error then.
    environ = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(models / "none")}
    server = Process(Forked([*SERVE, *arguments], environ))
    server.wait_for("Uvicorn running on")
    yield f"http://127.0.0.1:{port}/v1"
    server.stop()


@pytest.fixture(scope="module")
def service(
    request: pytest.FixtureRequest,
    url: str,
    models: Path,
    socket_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Service]:
    database = new_database("sqlite", request, tmp_path_factory.mktemp("db"))
    variables = {
        "HELIXQ_ENGINE": "openai",
        "HELIXQ_ENGINE_URL": url,
        "HELIXQ_BASE_MODEL": str(DEMO_CHECKPOINT / "base"),
        "HELIXQ_ADAPTERS": ",".join(f"{role}={models / role}" for role in Role),
        "HELIXQ_MAX_CONTEXT": "512",
    }
    folder = socket_folder / "transformers-serve"
    with running(DEMO_CHECKPOINT, database, folder, **variables) as service:
        yield service


def test_its_texts_are_those_of_the_reference_engine(service: Service) -> None:
    """Greedy texts, token by token, from the same weights and the same prompts."""
    service.worker.wait_for("refuses top_k: requests go without .*Unexpected fields")
    job = service.submit("What is 47 * 36?", temperature=0, max_output_tokens=40)
    assert service.wait(job)["status"] in ("completed", "incomplete")
    history: Any = service.history(job)
    worker = history["attempts"][0]["worker"]
    assert worker["omitted_parameters"] == ["top_k"]
    assert worker["served"]["actor"]["name"].endswith("/actor")
    (server,) = worker["servers"].values()
    assert server["software"] == "uvicorn"
    with service.http() as http:
        page = http.get(f"/jobs/{job}").text
        assert "top-k 50 (not applied: the server refuses it)" in page
    engine = start_engine(DEMO_CHECKPOINT)
    try:
        for attempt in history["attempts"]:
            role, sampling = Role(attempt["role"]), Sampling(temperature=0, max_output_tokens=40)
            here = engine.submit(Request(role, attempt["prompt"], sampling)).result(PATIENCE)
            assert attempt["output"] == here.text
            assert attempt["prompt_tokens"] == here.prompt_tokens
            assert attempt["finish_reason"] == here.finish_reason.value
    finally:
        engine.close()
    final = history["attempts"][-1]["output"]
    stop = final[len(final) // 2 :][:3]
    cut = service.submit("What is 47 * 36?", temperature=0, max_output_tokens=40, stop=stop)
    assert service.wait(cut)["status"] == "completed"
    history = service.history(cut)
    # It returns the stop string, and what else the last token has.
    assert history["attempts"][-1]["output"] == final[: final.index(stop)]


def test_a_question_that_is_too_long_is_refused_by_the_web(service: Service) -> None:
    """The base has a tokenizer here, so tokens are counted before there is a job."""
    with service.http() as http:
        reply = http.post("/v1/responses", json={"input": "word " * 600})
    assert reply.status_code == 400
    assert reply.json()["error"]["code"] == "context_length_exceeded"
    assert settings.load(service.environ).max_context == 512
