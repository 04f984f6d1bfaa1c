"""Measures how long the service takes to accept a batch, and the memory that it needs for it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2

from cli.bench import processes, resources
from cli.bench.common import demo_questions
from cli.errors import ExpectedError
from jobs.settings import Settings

#: Maximum seconds for the service to start, and for a batch to be accepted.
TIMEOUT = 900.0
#: Seconds between two polls of the batch, and between two checks of the memory.
POLL_INTERVAL = 0.1
ENDPOINT = "/v1/responses"


@dataclass(frozen=True)
class AcceptedBatch:
    """The measurement of one batch."""

    lines: int
    bytes: int
    #: Seconds to store the file, and from then until all lines were valid.
    upload: float
    validation: float
    #: Bytes by which the memory of the web, and of the worker, grew at most.
    web_growth: int
    worker_growth: int


def run(
    folder: Path,
    *,
    lines: int,
    line_bytes: int,
    database_url: str | None = None,
    on_progress: Callable[[str], object] = lambda _: None,
) -> AcceptedBatch:
    """Start `helixq up` on the demo's model, upload a batch, and wait until its lines are valid.

    Args:
        folder: an empty folder, for the service's data.
        lines: of the batch.
        line_bytes: of each line, at least; long questions repeat their text.
        database_url: an empty database; by default SQLite in the folder.
        on_progress: called with a description of the next step.

    Raises:
        ExpectedError: the service does not start, or the batch is refused.
    """
    resources.check_system()
    settings = Settings(data_dir=folder / "data", port=processes.free_port())
    environ = {} if database_url is None else {"HELIXQ_DATABASE_URL": database_url}
    file = folder / "batch.jsonl"
    _write(file, lines, line_bytes)
    on_progress("starting the service")
    with (
        processes.run("up", settings, environ, path="/readyz", timeout=TIMEOUT) as pid,
        httpx2.Client(base_url=settings.url, timeout=TIMEOUT, trust_env=False) as client,
        _watching({name: resources.child(pid, name) for name in ("web", "worker")}) as grown,
    ):
        on_progress(f"uploading {file.stat().st_size >> 20} MiB")
        start = time.monotonic()
        with file.open("rb") as content:
            reply = client.post(
                "/v1/files", data={"purpose": "batch"}, files={"file": (file.name, content)}
            )
        uploaded = time.monotonic()
        file_id = _checked(reply)["id"]
        on_progress(f"validating {lines} lines")
        body = {"input_file_id": file_id, "endpoint": ENDPOINT, "completion_window": "24h"}
        batch = _checked(client.post("/v1/batches", json=body))
        while batch["status"] == "validating":
            time.sleep(POLL_INTERVAL)  # Clients of batches poll.
            batch = _checked(client.get(f"/v1/batches/{batch['id']}"))
        accepted = time.monotonic()
        if batch["status"] != "in_progress":
            raise ExpectedError(f"the batch is {batch['status']}: {batch['errors']}")
        return AcceptedBatch(
            lines,
            file.stat().st_size,
            uploaded - start,
            accepted - uploaded,
            grown["web"],
            grown["worker"],
        )


def _write(file: Path, lines: int, line_bytes: int) -> None:
    # In ASCII, a character is a byte.
    questions = [
        text.encode("ascii", "replace").decode() for text in demo_questions(min(lines, 1000))
    ]
    empty = len(_line(0, ""))
    with file.open("w", encoding="utf-8") as stream:
        for number in range(lines):
            question = questions[number % len(questions)]
            text = (f"{question} " * (1 + line_bytes // len(question)))[: line_bytes - empty]
            stream.write(_line(number, max(text, question, key=len)))


def _line(number: int, question: str) -> str:
    body = {"model": "helixnet", "input": question}
    request = {"custom_id": f"line-{number:05}", "method": "POST", "url": ENDPOINT, "body": body}
    return json.dumps(request) + "\n"


def _checked(reply: httpx2.Response) -> dict[str, object]:
    if reply.status_code != 200:
        raise ExpectedError(f"refused with status {reply.status_code}: {reply.text}")
    data: dict[str, object] = reply.json()
    return data


@contextmanager
def _watching(pids: dict[str, int]) -> Iterator[dict[str, int]]:
    """Yield how many bytes the memory of processes has grown so far at most, by their names."""
    before = {name: resources.resident(pid) for name, pid in pids.items()}
    grown = dict.fromkeys(pids, 0)
    stopped = threading.Event()

    def watch() -> None:
        while not stopped.wait(POLL_INTERVAL):
            for name, pid in pids.items():
                grown[name] = max(grown[name], resources.resident(pid) - before[name])

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield grown
    finally:
        stopped.set()
        thread.join()
