"""A migration that only adds runs while jobs run: the old processes go on, and new ones work beside them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import servers
from tests.acceptance.conftest import PACED, Service, running
from tests.conftest import new_database

NEXT = (sys.executable, "-m", "tests.acceptance.next_version")
JOBS, TOKENS = 8, 40


@pytest.fixture(params=["sqlite", "postgresql"])
def service(
    request: pytest.FixtureRequest, endless: Path, socket_folder: Path, tmp_path: Path
) -> Iterator[Service]:
    database = new_database(request.param, request, tmp_path)
    folder = socket_folder / f"migrating-{request.param}"
    with running(endless, database, folder, program=PACED, HELIXQ_SLOTS="2") as running_service:
        yield running_service


def workers(service: Service, job_id: str) -> list[str]:
    """Return which workers finished a job's stages, each of them once."""
    history: Any = service.history(job_id)
    assert [(a["position"], a["status"]) for a in history["attempts"]] == [
        (0, "finished"),
        (1, "finished"),
        (2, "finished"),
    ]
    return [a["worker"]["id"] for a in history["attempts"]]


def test_a_migration_that_only_adds_runs_while_jobs_run(service: Service) -> None:
    jobs = [service.submit(f"Go on {i}", max_output_tokens=TOKENS) for i in range(JOBS)]
    service.wait_for_text(jobs[0])
    migrate = servers.forked("migrate", environ=service.environ, program=NEXT)
    assert migrate.wait() == 0, migrate.output
    # Questions are asked of the old web, and both workers answer them.
    new = servers.worker(service.environ, NEXT)
    try:
        new.wait_for("ready: ")
        jobs += [service.submit(f"And on {i}", max_output_tokens=TOKENS) for i in range(JOBS)]
        for job_id in jobs:
            assert service.wait(job_id)["status"] == "incomplete"
        assert len({worker for job_id in jobs for worker in workers(service, job_id)}) == 2
        for output in (service.web.output, service.worker.output, new.output):
            assert "Traceback" not in output
        # The old worker stops, and cannot come back.
        service.worker.stop()
        old = servers.worker(service.environ, PACED)
        assert old.wait() != 0
        old.wait_for("of a newer HelixQ")
        last = service.submit("The last", max_output_tokens=TOKENS)
        assert service.wait(last)["status"] == "incomplete"
        assert len(set(workers(service, last))) == 1
    finally:
        new.stop()
