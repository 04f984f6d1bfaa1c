"""Workers on separate hosts share the work, and a network partition loses no job."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import make_url

from tests.acceptance import hosts
from tests.acceptance.conftest import PACED, Service, running
from tests.acceptance.hosts import Host
from tests.conftest import LONG, new_database
from tests.servers import Process

JOBS = 24


@pytest.fixture(scope="module")
def service(
    request: pytest.FixtureRequest, long_texts: Path, socket_folder: Path, tmp_path_factory: Any
) -> Iterator[Service]:
    """A web, Redis and PostgreSQL; no worker."""
    database = new_database("postgresql", request, tmp_path_factory.mktemp("db"))
    with running(
        long_texts, database, socket_folder / "hosts", HELIXQ_SLOTS="2"
    ) as running_service:
        running_service.worker.stop()
        yield running_service


@pytest.fixture(scope="module")
def two_hosts(service: Service) -> Iterator[list[Host]]:
    postgresql = Path(str(make_url(service.environ["HELIXQ_DATABASE_URL"]).query["host"]))
    redis = Path(service.environ["HELIXQ_REDIS_URL"].removeprefix("unix://"))
    with hosts.hosts(["alpha", "beta"], postgresql / ".s.PGSQL.5432", redis) as started:
        yield started


def start(service: Service, host: Host, program: tuple[str, ...] = PACED) -> Process:
    """Start a worker that reaches database and Redis only over the network."""
    url = make_url(service.environ["HELIXQ_DATABASE_URL"])
    url = url.set(host=host.servers, port=hosts.POSTGRESQL, query={})
    redis = f"redis://{host.servers}:{hosts.REDIS}/0"
    database_url = url.render_as_string(hide_password=False)
    environ = {"HELIXQ_DATABASE_URL": database_url, "HELIXQ_REDIS_URL": redis}
    return host.worker({**service.environ, **environ}, program)


def attempts(service: Service, job_id: str) -> list[tuple[int, str, str]]:
    history: Any = service.history(job_id)
    return [
        (a["position"], a["status"], a["worker"]["id"].split("-")[0]) for a in history["attempts"]
    ]


def test_hosts_share_the_work_and_no_stage_runs_twice(
    service: Service, two_hosts: list[Host]
) -> None:
    """Their clocks are an hour apart."""
    # Both are as fast: otherwise the faster one could take nearly all.
    ahead = (sys.executable, "-m", "tests.acceptance.shifted_clock", "3600", "paced")
    workers = [start(service, two_hosts[0]), start(service, two_hosts[1], ahead)]
    try:
        for worker in workers:
            worker.wait_for("ready: ")
        ids = [service.submit("Go on", max_output_tokens=8) for _ in range(JOBS)]
        for job_id in ids:
            assert service.wait(job_id)["status"] == "incomplete"
    finally:
        for worker in workers:
            worker.stop()
    attempts_by_job = [attempts(service, job_id) for job_id in ids]
    expected = [(0, "finished"), (1, "finished"), (2, "finished")]
    assert all(
        [attempt[:2] for attempt in job_attempts] == expected for job_attempts in attempts_by_job
    )
    shares = Counter(attempt[2] for job_attempts in attempts_by_job for attempt in job_attempts)
    assert set(shares) == {"alpha", "beta"}
    assert min(shares.values()) > JOBS / 4, "both workers had stages"


def test_a_partitioned_host_is_replaced(service: Service, two_hosts: list[Host]) -> None:
    """The worker there gets no error, and can no longer record anything."""
    alpha, beta = two_hosts
    workers = [start(service, alpha)]
    try:
        workers[0].wait_for("ready: ")
        job_id = service.submit("Go on", max_output_tokens=LONG)
        service.wait_for_text(job_id)
        alpha.unplug()
        workers.append(start(service, beta))
        workers[1].wait_for(f"{job_id}: its worker stopped responding")
        workers[1].wait_for(f"{job_id}: actor starts")
        workers[0].wait_for("the database does not respond")
        alpha.plug()
        workers[0].wait_for(f"{job_id}: actor stopped")
        service.cancel(job_id)
        assert service.wait(job_id)["status"] == "cancelled"
        workers[1].wait_for(f"{job_id}: actor stopped")
        assert attempts(service, job_id) == [(0, "lost", "alpha"), (0, "cancelled", "beta")]
        # After the partition, the host takes stages again.
        workers[1].stop()
        next_id = service.submit("Go on", max_output_tokens=3)
        assert service.wait(next_id)["status"] == "incomplete"
        assert {host for *_, host in attempts(service, next_id)} == {"alpha"}
    finally:
        for worker in workers:
            worker.stop()
