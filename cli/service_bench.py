"""Measures jobs an hour of the whole service, from HTTP request to stored answer."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2

from cli.errors import ExpectedError
from jobs.settings import Settings

#: The question of the warm-up job, which is not counted.
WARM_UP = "Is everything warm?"
#: Clients that submit at the same time.
CLIENTS = 8
#: Seconds between polls of a job, or of a starting service.
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
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = int(probe.getsockname()[1])
    settings = Settings(data_dir=folder / "data", port=port)
    # The caller's settings must not reach the service.
    environ = {k: v for k, v in os.environ.items() if not k.startswith("HELIXQ_")}
    environ |= {
        "HELIXQ_DATA_DIR": str(settings.data_dir),
        "HELIXQ_PORT": str(port),
        "HELIXQ_SLOTS": str(slots),
    }
    log = folder / "up.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "cli", "up"], env=environ, stdout=stream, stderr=stream
        )
    try:
        with httpx2.Client(base_url=settings.url, timeout=TIMEOUT, trust_env=False) as client:
            _until_ready(process, client, log)
            yield client
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()


def _until_ready(process: subprocess.Popen[bytes], client: httpx2.Client, log: Path) -> None:
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        if process.poll() is not None:
            last = log.read_text(errors="replace").strip().splitlines()[-1:]
            raise ExpectedError(f"the service does not start: {' '.join(last)}")
        try:
            if client.get("/readyz").status_code == 200:
                return
        except httpx2.TransportError:
            pass  # It does not listen yet.
        time.sleep(POLL_INTERVAL)  # A server that starts notifies nobody.
    raise ExpectedError(f"the service was not ready within {TIMEOUT:g} seconds")


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
