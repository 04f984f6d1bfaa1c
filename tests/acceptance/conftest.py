"""The service as real processes."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openai import DefaultHttpxClient, OpenAI

from jobs.database_url import checked
from tests import servers
from tests.conftest import build_endless, migrate, model_settings, new_database
from tests.servers import NO_TLS, PATIENCE, PROGRAM, Process, RedisServer, settings_for
from tests.shared import copied

#: Starts workers for the checkpoint `long_texts`: its texts are waited for, or never end.
PACED = (sys.executable, "-m", "tests.acceptance.paced")
#: The final statuses of a job.
ENDED = ("completed", "incomplete", "failed", "cancelled")


@dataclass
class Service:
    """A web and a worker process on one Redis and one database."""

    environ: dict[str, str]
    redis: RedisServer
    web: Process
    worker: Process
    #: How its next workers are started.
    program: Sequence[str] = PROGRAM

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.environ['HELIXQ_PORT']}"

    def openai(self) -> OpenAI:
        client = DefaultHttpxClient(verify=NO_TLS, trust_env=False)
        return OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, http_client=client)

    def http(self) -> httpx2.Client:
        return httpx2.Client(base_url=self.url, timeout=PATIENCE, trust_env=False, verify=NO_TLS)

    def submit(self, question: object, **body: object) -> str:
        with self.http() as http:
            reply = http.post("/v1/responses", json={"input": question, "background": True, **body})
        assert reply.status_code == 202, reply.text
        return str(reply.json()["id"])

    def wait(self, job_id: str, *statuses: str) -> dict[str, object]:
        """Wait until a job has one of these statuses, or any final one."""
        end_statuses = statuses or ENDED
        give_up = time.monotonic() + 2 * PATIENCE
        with self.http() as http:
            while True:
                reply = http.get(f"/v1/responses/{job_id}", headers={"Prefer": "wait=5"})
                assert reply.status_code == 200, reply.text
                body: dict[str, object] = reply.json()
                if body["status"] in end_statuses:
                    return body
                if time.monotonic() > give_up:
                    raise AssertionError(
                        f"{job_id} is still {body['status']}\n{self.worker.output}"
                    )

    def wait_for_text(self, job_id: str) -> None:
        """Wait for the first text of a job."""
        with (
            self.http() as http,
            http.stream("GET", f"/v1/responses/{job_id}?stream=true") as reply,
        ):
            for line in reply.iter_lines():
                if line.startswith("event: ") and line.endswith(".delta"):
                    return
        raise AssertionError("the stream ended without text")

    def history(self, job_id: str) -> dict[str, object]:
        with self.http() as http:
            history: dict[str, object] = http.get(f"/api/jobs/{job_id}").json()
        return history

    def attempts(self, job_id: str) -> list[tuple[int, str]]:
        """Return stage index and status of each attempt of a job."""
        history: Any = self.history(job_id)
        return [(attempt["position"], attempt["status"]) for attempt in history["attempts"]]

    def start_worker(self) -> None:
        self.worker = servers.worker(self.environ, self.program)
        self.worker.wait_for("ready: ")

    def cancel(self, job_id: str) -> None:
        with self.http() as http:
            reply = http.post(f"/v1/responses/{job_id}/cancel")
        assert reply.status_code == 200, reply.text

    def cancel_all(self) -> None:
        """Cancel the jobs that a failed test left: its texts would keep the slots from the next one."""
        with self.http() as http:
            for job in http.get("/v1/responses", params={"limit": 100}).json()["data"]:
                if job["status"] not in ENDED:
                    http.post(f"/v1/responses/{job['id']}/cancel")


@contextmanager
def running(
    checkpoint: Path,
    database: str,
    folder: Path,
    *,
    program: Sequence[str] = PROGRAM,
    first_program: Sequence[str] | None = None,
    **settings: str,
) -> Iterator[Service]:
    """Start the service, optionally with another program as its first worker; stop it at the end.

    The database gets the schema, if it is empty.
    """
    folder.mkdir()
    redis = RedisServer(folder)
    environ = {
        **model_settings(checkpoint),
        **settings_for(database, redis.url, folder),
        **settings,
    }
    migrate(checked(database))
    worker = servers.worker(environ, first_program or program)
    web = servers.web(environ)
    service = Service(environ, redis, web, worker, program)
    try:
        worker.wait_for("ready: ")
        web.wait_for("listening")
        yield service
    finally:
        service.web.stop()
        service.worker.stop()
        redis.stop()


@pytest.fixture(scope="session")
def long_texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint whose texts never end by themselves. `PACED` workers take their time for them."""
    make = partial(build_endless, layers=2)
    return copied("long", make, tmp_path_factory.mktemp("shared") / "long")


def on_either_database(*, paced: bool = False, **settings: str) -> Any:
    """Return a fixture: the service on SQLite and on PostgreSQL, for all tests of a module.

    Args:
        paced: whether its worker is `PACED`, and has the checkpoint `long_texts`.
        settings: further settings of its processes.
    """

    @pytest.fixture(scope="module", params=["sqlite", "postgresql"])
    def service(
        request: pytest.FixtureRequest,
        socket_folder: Path,
        tmp_path_factory: pytest.TempPathFactory,
    ) -> Iterator[Service]:
        kind = request.param
        checkpoint = request.getfixturevalue("long_texts" if paced else "checkpoint")
        folder = socket_folder / f"{request.module.__name__.rsplit('_', 1)[-1]}-{kind}"
        database = new_database(kind, request, tmp_path_factory.mktemp("db"))
        program = PACED if paced else PROGRAM
        with running(checkpoint, database, folder, program=program, **settings) as running_service:
            yield running_service

    return service


service = on_either_database()
