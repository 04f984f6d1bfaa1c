"""The events of a job that restarted with another model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa

from jobs.database import Database
from jobs.database_clock import utcnow
from jobs.models import ANONYMOUS, Job, Worker, WorkerState
from jobs.protocol.events import events
from jobs.use_cases import queries, restarting, stages, sweeping, workers
from jobs.use_cases.workers import Runtime
from tests.conftest import RUNTIME, WORKER
from tests.integration.rows import OUTPUT, claim, let_leases_run_out, submit
from tests.integration.web.client import Client, serving
from tests.servers import RedisServer

OTHER = "worker-2"


@pytest.fixture
def two_models(database: Database) -> Database:
    """A database with two workers of different models, both ready."""
    workers.register(database, OTHER, "elsewhere", 2, Runtime({"engine": "other"}, 4096, "{}"))
    for worker in (WORKER, OTHER):
        workers.set_state(database, worker, WorkerState.READY)
    return database


@pytest.fixture
def web(database_url: str, redis_server: RedisServer) -> Iterator[Client]:
    """A client of an application on the same database."""
    with serving(database_url, redis_server.url, migrate=False) as client:
        yield client


def restart(database: Database) -> None:
    """Let the leases expire, with no worker of their model left."""
    let_leases_run_out(database)
    sweeping.sweep(database)
    with database.engine.begin() as connection:
        connection.execute(sa.update(Job).values(ready_at=utcnow(-700)))
        gone = sa.update(Worker).where(Worker.id == WORKER)
        connection.execute(gone.values(seen_at=utcnow(-700)))
    assert restarting.restart_jobs(database, 600)


def numbered(
    database: Database, job: Job, live: dict[str, list[str]] | None = None
) -> dict[int, Any]:
    """Return all events of a job by their numbers."""
    all_events = enumerate(events(queries.get_job(database, ANONYMOUS, job.id), live or {}))
    return {number: event for number, event in all_events if event is not None}


def test_sequence_numbers_are_the_same_for_live_and_late_readers(two_models: Database) -> None:
    job = submit(two_models)
    stages.record(
        two_models, claim(two_models, job), replace(OUTPUT, text="An answer", delta_lengths=[3, 6])
    )
    lost = claim(two_models, job, 1)
    limit = queries.get_job(two_models, ANONYMOUS, job.id).max_output_tokens
    live = numbered(two_models, job, {lost.text_id: ["x"] * (limit + 1)})
    restart(two_models)
    waiting = numbered(two_models, job)
    for stage_index in range(3):
        stages.record(two_models, claim(two_models, job, stage_index, OTHER), OUTPUT)
    late = numbered(two_models, job)
    assert late.keys() >= waiting.keys()
    for earlier in (live, waiting):
        assert all(late[n] == event for n, event in earlier.items() if n in late)
    # A reader that saw all of the lost text continues with what follows it.
    after = [event for number, event in late.items() if number > max(live)]
    assert [e["type"] for e in after if "reasoning" not in e["type"]][:5] == [
        "response.content_part.done",
        "response.output_item.done",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert [e["response"]["run"] for e in late.values() if e["type"] == "response.in_progress"] == [
        1,
        2,
    ]
    added = [e for e in late.values() if e["type"] == "response.output_item.added"]
    assert [e["output_index"] for e in added] == [0, 1, 2, 3, 4]
    assert len({e["item"]["id"] for e in added}) == 5, "each item has an id of its own"
    ended = [e["item"]["status"] for e in late.values() if e["type"] == "response.output_item.done"]
    assert ended == ["completed", "incomplete", "completed", "completed", "completed"]


def test_the_response_has_the_last_run_and_the_history_has_all(
    two_models: Database, web: Client
) -> None:
    job = submit(two_models)
    stages.record(
        two_models,
        claim(two_models, job),
        replace(OUTPUT, text="An answer of before", delta_lengths=[19]),
    )
    restart(two_models)
    response = web.get(f"/v1/responses/{job.id}").json
    assert (response["status"], response["run"], response["output"]) == ("in_progress", 2, [])
    page = web.get(f"/jobs/{job.id}").text
    assert "no worker with the model of the run before was ready for 600 seconds" in page
    assert "An answer of before" in page
    for stage_index, text in enumerate(["One", "Two", "Three"]):
        output = replace(OUTPUT, text=text, delta_lengths=[len(text)])
        stages.record(two_models, claim(two_models, job, stage_index, OTHER), output)
    response = web.get(f"/v1/responses/{job.id}").json
    assert [item["content"][0]["text"] for item in response["output"]] == ["One", "Two", "Three"]
    final = web.get(f"/v1/responses/{job.id}?stream=true").text.strip().splitlines()[-1]
    assert '"status":"completed"' in final

    history = web.get(f"/api/jobs/{job.id}").json
    assert history["run"] == 2
    [restarted] = history["restarts"]
    assert (restarted["run"], restarted["model_before"]) == (2, f"sha256:{RUNTIME.model}")
    assert restarted["at"].endswith("Z")
    assert [(a["run"], a["number"], a["output"]) for a in history["attempts"]] == [
        (1, 1, "An answer of before"),
        (2, 2, "One"),
        (2, 1, "Two"),
        (2, 1, "Three"),
    ]
    models = {(a["run"], a["worker"]["model"]) for a in history["attempts"]}
    assert models == {(1, restarted["model_before"]), (2, history["model"])}
