"""Processes are killed in turn while clients submit: every accepted job ends once, with all stages.

The short form runs with every test; ``pytest --storm=long`` runs 500 jobs on four workers.
"""

from __future__ import annotations

import itertools
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests import servers
from tests.acceptance.conftest import Service, running
from tests.conftest import new_database
from tests.joining import join
from tests.servers import PATIENCE, Process

CLIENTS = 4
#: Offsets of the workers' clocks in seconds.
CLOCKS = (0, 3600, -3600)
SHIFTED_CLOCK = (sys.executable, "-m", "tests.acceptance.shifted_clock")
FINAL = ("completed", "incomplete", "failed", "cancelled")
#: Lost attempts after which a job counts as the cause.
MOST_LOST = 3


@dataclass(frozen=True)
class Size:
    jobs: int
    workers: int
    kills: int
    #: Seconds between two kills.
    pause: float


SIZES = {"short": Size(40, 2, 4, 2.0), "long": Size(500, 4, 40, 3.0)}


@pytest.fixture(params=["sqlite", "postgresql"])
def service(
    request: pytest.FixtureRequest, checkpoint: Path, socket_folder: Path, tmp_path: Path
) -> Iterator[Service]:
    database = new_database(request.param, request, tmp_path)
    folder = socket_folder / f"storm-{request.param}"
    with running(checkpoint, database, folder, HELIXQ_SLOTS="4") as running_service:
        yield running_service


def submit(service: Service, key: str, rng: random.Random) -> str:
    """Submit with an idempotency key until there is a reply."""
    body = {
        "input": f"What is {key}?",
        "background": True,
        "max_output_tokens": rng.randint(1, 24),
    }
    give_up = time.monotonic() + PATIENCE
    while time.monotonic() < give_up:
        try:
            with service.http() as http:
                headers = {"Idempotency-Key": key}
                reply = http.post("/v1/responses", json=body, headers=headers)
        except httpx2.TransportError:
            time.sleep(rng.uniform(0.05, 0.2))  # there is no event for a server's recovery
            continue
        if reply.status_code < 300:
            return str(reply.json()["id"])
        assert reply.status_code in (429, 503), reply.text
        time.sleep(rng.uniform(0.05, 0.2))  # as a client that was told to retry
    raise AssertionError(f"no answer for {key}")


class Storm:
    """Kills one process after the other, and starts it again."""

    def __init__(self, service: Service, workers: int) -> None:
        self._service = service
        self._workers = [service.worker]
        self._workers += [self._worker(number) for number in range(1, workers)]
        for worker in self._workers:
            worker.wait_for("ready: ")

    def _worker(self, number: int) -> Process:
        """Start a worker with a different clock, as on another host."""
        program = (*SHIFTED_CLOCK, str(CLOCKS[number % len(CLOCKS)]))
        return servers.worker(self._service.environ, program)

    def rage(self, kills: int, pause: float) -> None:
        victims = itertools.cycle(["worker", "web", "worker", "redis"])
        numbers = itertools.cycle(range(len(self._workers)))
        for victim in itertools.islice(victims, kills):
            time.sleep(pause)  # the interval between kills
            if victim == "web":
                self._service.web.kill()
                self._service.web = servers.web(self._service.environ)
            elif victim == "redis":
                self._service.redis.process.kill()
                self._service.redis.start()
            else:
                number = next(numbers)
                self._workers[number].kill()
                self._workers[number] = self._worker(number)

    def calm(self) -> None:
        self._service.worker = self._workers[0]
        for worker in self._workers[1:]:
            worker.stop()


def test_every_accepted_job_ends_once_with_all_stages(
    service: Service, request: pytest.FixtureRequest
) -> None:
    size = SIZES[request.config.getoption("--storm")]
    storm = Storm(service, size.workers)
    keys = [f"storm-{n}" for n in range(size.jobs)]
    ids: dict[str, str] = {}

    def client(number: int) -> None:
        rng = random.Random(number)
        for key in keys[number::CLIENTS]:
            ids[key] = submit(service, key, rng)
            # Clients think between two questions.
            time.sleep(rng.uniform(0, 2 * size.kills * size.pause * CLIENTS / size.jobs))

    clients = [threading.Thread(target=client, args=(n,)) for n in range(CLIENTS)]
    for thread in clients:
        thread.start()
    storm.rage(size.kills, size.pause)
    for thread in clients:
        join(thread)
    service.web.wait_for("listening")
    ends = Counter(str(service.wait(ids[key])["status"]) for key in keys)
    assert len(set(ids.values())) == size.jobs, "one job for each key"
    assert sum(ends.values()) == size.jobs
    assert set(ends) <= set(FINAL)
    lost = 0
    workers = Counter[str]()
    for job_id in ids.values():
        history: Any = service.history(job_id)
        outcomes = [(a["position"], a["status"]) for a in history["attempts"]]
        lost += sum(status == "lost" for _, status in outcomes)
        workers.update(a["worker"]["id"] for a in history["attempts"])
        finished = [position for position, status in outcomes if status == "finished"]
        if history["status"] == "failed":
            assert Counter(outcomes)[len(finished), "lost"] == MOST_LOST, outcomes
        else:
            assert finished == [0, 1, 2], outcomes
        assert all(status in ("finished", "lost") for _, status in outcomes), outcomes
    assert len(workers) > size.workers, "killed workers and their successors all had stages"
    storm.calm()
    print(f"{size.jobs} jobs, {size.kills} kills: {dict(ends)}, {lost} attempts lost")
