"""Migrations run while jobs run: old processes go on and may start again, and new ones work beside them.

First a version that only adds to the schema, then one that removes what no process needs any more.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from tests import servers
from tests.acceptance.conftest import PACED, Service, on_either_database

NEXT, AFTER_NEXT = (
    (sys.executable, "-m", f"tests.acceptance.{name}")
    for name in ("next_version", "version_after_next")
)
JOBS, TOKENS = 8, 16


service = on_either_database(paced=True, HELIXQ_SLOTS="2")


def workers(service: Service, job_id: str) -> list[str]:
    """Return which workers finished a job's stages, each of them once."""
    history: Any = service.history(job_id)
    assert [(a["position"], a["status"]) for a in history["attempts"]] == [
        (0, "finished"),
        (1, "finished"),
        (2, "finished"),
    ]
    return [a["worker"]["id"] for a in history["attempts"]]


def migrate(service: Service, program: Sequence[str]) -> None:
    command = servers.forked("migrate", environ=service.environ, program=program)
    assert command.wait() == 0, command.output
    command.stop()


def ask(service: Service, question: str) -> list[str]:
    return [service.submit(f"{question} {i}", max_output_tokens=TOKENS) for i in range(JOBS)]


def test_migrations_run_while_jobs_run(service: Service) -> None:
    jobs = ask(service, "Go on")
    service.wait_for_text(jobs[0])
    migrate(service, NEXT)
    # Questions are asked of the old web, and both workers answer them.
    new = servers.worker(service.environ, NEXT)
    try:
        new.wait_for("ready: ")
        jobs += ask(service, "And on")
        for job_id in jobs:
            assert service.wait(job_id)["status"] == "incomplete"
        assert len({worker for job_id in jobs for worker in workers(service, job_id)}) == 2
        # An old process that ends may start again, and finds nothing to migrate.
        service.worker.kill()
        migrate(service, PACED)
        service.worker = servers.worker(service.environ, PACED)
        service.worker.wait_for("ready: ")
        service.worker.stop()
        # The version after the next removes what the next one does not need. The next one goes on, and may start
        # again; an old one may not.
        jobs = ask(service, "And after")
        service.wait_for_text(jobs[0])
        migrate(service, AFTER_NEXT)
        newest = servers.worker(service.environ, AFTER_NEXT)
        try:
            newest.wait_for("ready: ")
            for job_id in jobs:
                assert service.wait(job_id)["status"] == "incomplete"
            new.stop()
            new = servers.worker(service.environ, NEXT)
            new.wait_for("ready: ")
            old = servers.worker(service.environ, PACED)
            assert old.wait() != 0
            old.wait_for("of a newer HelixQ")
            old.stop()
        finally:
            newest.stop()
        for output in (service.web.output, service.worker.output, new.output, newest.output):
            assert "Traceback" not in output
    finally:
        new.stop()
