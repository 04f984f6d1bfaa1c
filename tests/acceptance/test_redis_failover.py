"""Redis Sentinel replaces the primary: no job is lost, not even those whose messages are."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.acceptance.conftest import PACED, Service, running
from tests.sentinels import Sentinels, until

#: Tokens of a stage that lasts longer than a failover.
STAGE = 160
FINISHED = [(0, "finished"), (1, "finished"), (2, "finished")]


@pytest.fixture(scope="module")
def sentinels(socket_folder: Path) -> Iterator[Sentinels]:
    started = Sentinels(socket_folder / "sentinels")
    yield started
    started.stop()


@pytest.fixture(scope="module")
def service(
    long_texts: Path,
    socket_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
    sentinels: Sentinels,
) -> Iterator[Service]:
    database = f"sqlite:///{tmp_path_factory.mktemp('db') / 'jobs.sqlite3'}"
    with running(
        long_texts,
        database,
        socket_folder / "failover",
        program=PACED,
        HELIXQ_SLOTS="2",
        HELIXQ_REDIS_URL=sentinels.url,
    ) as running_service:
        yield running_service


def read(service: Service, job_id: str) -> list[dict[str, Any]]:
    """Read a job's event stream to its end."""
    with service.http() as http, http.stream("GET", f"/v1/responses/{job_id}?stream=true") as reply:
        return [
            json.loads(line.removeprefix("data: "))
            for line in reply.iter_lines()
            if line.startswith("data: ")
        ]


def is_ready(service: Service) -> bool:
    with service.http() as http:
        reply = http.get("/readyz")
    return reply.status_code == 200


def messages(client: redis.Redis) -> int:
    client.execute_command("SELECT 1")  # type: ignore[no-untyped-call]  # redis-py has no types there
    keys: Any = client.keys("helixq:helixq*")
    return sum(int(client.llen(key)) for key in keys)


def check_ended_once(service: Service, job_ids: list[str]) -> None:
    for job_id in job_ids:
        assert service.wait(job_id)["status"] == "incomplete"
        assert service.attempts(job_id) == FINISHED
    assert service.worker.popen.poll() is None


def check_stream(stream: Future[list[dict[str, Any]]]) -> None:
    """Check that a reader has got every event once, and the whole text."""
    events = stream.result()
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert events[-1]["type"] == "response.incomplete"
    text = "".join(e["delta"] for e in events if e["type"] == "response.output_text.delta")
    [message] = [item for item in events[-1]["response"]["output"] if item["type"] == "message"]
    assert text == message["content"][0]["text"]


def test_a_killed_primary_and_its_lost_messages_lose_no_job(
    service: Service, sentinels: Sentinels
) -> None:
    """Replication is asynchronous: what the replica had not got yet is lost with the primary."""
    sentinels.stop_a_sentinel()
    running_ids = [service.submit("Go on", max_output_tokens=STAGE) for _ in range(2)]
    for job_id in running_ids:
        service.wait_for_text(job_id)
    with ThreadPoolExecutor() as readers:
        stream = readers.submit(read, service, running_ids[0])
        primary, replica = sentinels.primary, sentinels.replica
        with sentinels.not_replicating():
            waiting_ids = [service.submit("Go on", max_output_tokens=3) for _ in range(3)]
            assert (messages(primary.client), messages(replica.client)) == (3, 0)
            primary.process.kill()
        until(lambda: not is_ready(service))
        during = service.submit("Go on", max_output_tokens=3)
        sentinels.replace(primary)
        until(lambda: is_ready(service))
        after = service.submit("Go on", max_output_tokens=3)
        check_stream(stream)
    check_ended_once(service, [*running_ids, *waiting_ids, during, after])


def test_a_planned_failover_and_a_primary_that_hangs(
    service: Service, sentinels: Sentinels
) -> None:
    """A server that hangs, as one that has lost its power, keeps its connections open and answers nothing."""
    for server in sentinels.servers:
        if server.process.popen.poll() is not None:
            server.start(sentinels.primary.port)
    sentinels.wait_until_in_sync()
    job_ids = [service.submit("Go on", max_output_tokens=STAGE)]
    service.wait_for_text(job_ids[0])
    sentinels.fail_over()
    job_ids.append(service.submit("Go on", max_output_tokens=3))
    assert service.wait(job_ids[1])["status"] == "incomplete", "beside the running job"
    sentinels.wait_until_in_sync()
    hanging = sentinels.primary
    hanging.process.signal(signal.SIGSTOP)
    try:
        job_ids.append(service.submit("Go on", max_output_tokens=3))
        sentinels.replace(hanging)
        until(lambda: is_ready(service))
        check_ended_once(service, job_ids)
    finally:
        hanging.process.signal(signal.SIGCONT)
    check_ended_once(service, [service.submit("Go on", max_output_tokens=3)])
