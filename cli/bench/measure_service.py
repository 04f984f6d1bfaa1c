"""Measures jobs an hour of the whole service, from HTTP request to stored answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2

from cli.bench import processes
from cli.errors import ExpectedError
from jobs.settings import Settings

#: The question of the warm-up job, which is not counted.
WARM_UP = "Is everything warm?"
#: Clients that submit at the same time.
CLIENTS = 8
#: Seconds between polls of a job.
POLL_INTERVAL = 0.05
#: Maximum seconds for the service to become ready, and for a job to end.
TIMEOUT = 600.0


def run(
    folder: Path,
    questions: Sequence[str],
    *,
    at_once: int,
    max_output_tokens: int,
    seed: int,
    on_progress: Callable[[str], object] = lambda _: None,
) -> tuple[float, int]:
    """Start `helixq up` on the demo's model, submit all questions, and wait for the last job.

    Args:
        folder: an empty folder, for the service's data.
        questions: the questions, one job each.
        at_once: slots of the engine.
        max_output_tokens: of every stage.
        seed: of the first job; each following job's is larger by one.
        on_progress: called with a description of the next step.

    Returns:
        seconds from the first request until the last job has ended, and new tokens of all stages.

    Raises:
        ExpectedError: the service does not start, or a job does not complete.
    """
    on_progress("starting the service")
    with service(folder, at_once) as client:
        bodies = [
            {"input": text, "max_output_tokens": max_output_tokens, "seed": seed + i}
            for i, text in enumerate(questions)
        ]
        # A different question, since the engine may cache prompts and guess repeated text.
        wait(client, submit(client, {**bodies[0], "input": WARM_UP}))
        on_progress(f"answering {len(questions)} questions, {at_once} at once")
        start = time.monotonic()
        with ThreadPoolExecutor(CLIENTS) as pool:
            ids = list(pool.map(lambda body: submit(client, body), bodies))
        responses = [wait(client, job_id) for job_id in ids]
        seconds = time.monotonic() - start
        return seconds, sum(int(response["usage"]["output_tokens"]) for response in responses)


@contextmanager
def service(folder: Path, slots: int) -> Iterator[httpx2.Client]:
    """Run `helixq up` on the demo's model with its data in an empty folder; yield a client."""
    settings = Settings(data_dir=folder / "data", port=processes.free_port())
    environ = {"HELIXQ_SLOTS": str(slots)}
    with (
        processes.run("up", settings, environ, path="/readyz", timeout=TIMEOUT),
        httpx2.Client(base_url=settings.url, timeout=TIMEOUT, trust_env=False) as client,
    ):
        yield client


def submit(client: httpx2.Client, body: dict[str, Any]) -> str:
    """Submit a question; return the job's id."""
    reply = client.post("/v1/responses", json={**body, "background": True})
    if reply.status_code != 202:
        raise ExpectedError(f"a question was refused with status {reply.status_code}: {reply.text}")
    return str(reply.json()["id"])


def wait(client: httpx2.Client, job_id: str) -> dict[str, Any]:
    """Poll until a job has ended; return its response."""
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        response: dict[str, Any] = client.get(f"/v1/responses/{job_id}").json()
        if response["status"] in ("completed", "incomplete"):
            return response
        if response["status"] not in ("queued", "in_progress"):
            raise ExpectedError(f"the job {job_id} ended {response['status']}")
        time.sleep(POLL_INTERVAL)  # Long polling would occupy the web's threads.
    raise ExpectedError(f"the job {job_id} did not end within {TIMEOUT:g} seconds")
