"""A client of the application, and helpers of its tests."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jobs.database import Database
from jobs.use_cases import stages, workers
from jobs.use_cases.stages import Output
from jobs.use_cases.workers import Runtime
from tests import application
from tests.conftest import WORKER, give_schema
from web import rate_limits
from web.services import Services

#: Flask's test client. Its own type calls the JSON of every response possibly None.
Client = Any

OUTPUT = Output("A text.", [2, 5], 20, 3, "stop", 1024, 0.0)


@contextmanager
def serving(
    database_url: str, redis_url: str, *, migrate: bool = True, **changes: str
) -> Iterator[Client]:
    """Create the application; yield a client of it.

    Args:
        database_url, redis_url: of its servers.
        migrate: whether to make the tables.
        changes: other settings, without their prefix.
    """
    app = application.make(
        {
            "HELIXQ_DATABASE_URL": database_url,
            "HELIXQ_REDIS_URL": redis_url,
            **{f"HELIXQ_{name}": value for name, value in changes.items()},
        }
    )
    services: Services = app.extensions["helixq"]
    if migrate:
        give_schema(services.database.engine)
    try:
        yield app.test_client()
    finally:
        rate_limits.close(app)
        services.keys.close()
        services.database.close()
        services.progress.close()


def services_of(web: Client) -> Services:
    services: Services = web.application.extensions["helixq"]
    return services


def register_worker(web: Client, tokenizer_json: str) -> None:
    """Register the worker that `finish` stands for."""
    runtime = Runtime({"engine": "none"}, 4096, tokenizer_json)
    workers.register(services_of(web).database, WORKER, "localhost", 1, runtime)


def ask(web: Client, *, idempotency_key: str | None = None, **body: Any) -> dict[str, Any]:
    """Submit a question in the background; return the response."""
    headers = {} if idempotency_key is None else {"Idempotency-Key": idempotency_key}
    reply = web.post(
        "/v1/responses", json={"input": "Why?", "background": True, **body}, headers=headers
    )
    assert reply.status_code == 202, reply.text
    response: dict[str, Any] = reply.json
    return response


def finish(
    database: Database,
    job_id: str,
    count: int = 3,
    output: Output = OUTPUT,
    first_stage: int = 0,
) -> None:
    """Run a job's stages as a worker does, up to number ``count``."""
    for stage_index in range(first_stage, count):
        claim = stages.claim(database, job_id, stage_index, WORKER, job_timeout=60)
        assert claim is not None
        stages.record(database, claim, output)


def stream(web: Client, job_id: str, **query: Any) -> list[dict[str, Any]]:
    """Read the event stream of a job that has ended; return its events."""
    reply = web.get(f"/v1/responses/{job_id}", query_string={"stream": "true", **query})
    assert reply.mimetype == "text/event-stream"
    events = []
    for block in reply.text.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n"))
        event = json.loads(fields["data"])
        assert fields["event"] == event["type"]
        assert int(fields["id"]) == event["sequence_number"]
        events.append(event)
    return events
