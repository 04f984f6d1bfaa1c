"""Idempotency keys."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any
from unittest.mock import Mock

import pytest

from jobs.database import Database
from jobs.models import ANONYMOUS
from jobs.protocol.errors import InvalidRequestError
from jobs.use_cases import cancellation, queries, workers
from jobs.use_cases.workers import Runtime
from tests.integration.web.client import Client, ask, finish, services_of, serving
from tests.servers import RedisServer
from web.v1 import routes
from web.waiting import MAX_WAITING


def test_an_idempotency_key_submits_once(web: Client, database: Database) -> None:
    def post(key: str, **body: Any) -> Any:
        headers = {"Idempotency-Key": key}
        return web.post("/v1/responses", json={"background": True, **body}, headers=headers)

    first, repeated = post("k", input="Why?"), post("k", input="Why?")
    assert first.json["id"] == repeated.json["id"]
    assert post("k", input="Why?", seed=None).json["id"] == first.json["id"]
    changed = post("k", input="How?")
    assert (changed.status_code, changed.json["error"]["code"]) == (422, "idempotency_key_reused")
    assert post("", input="Why?").status_code == 400
    assert len(queries.list_jobs(database, ANONYMOUS, limit=10)[0]) == 1


def test_an_idempotency_key_replays_once(web: Client, database: Database) -> None:
    done, other = ask(web)["id"], ask(web)["id"]
    finish(database, done)
    finish(database, other)

    def replay(job_id: str, key: str) -> Any:
        return web.post(f"/api/jobs/{job_id}/replay", headers={"Idempotency-Key": key})

    first = replay(done, "k")
    assert (first.status_code, replay(done, "k").json) == (202, first.json)
    assert replay(done, "l").json["id"] != first.json["id"]
    changed = replay(other, "k")
    assert (changed.status_code, changed.json["code"]) == (422, "idempotency_key_reused")
    assert replay(done, "").json["code"] == "invalid_idempotency_key"
    reply = web.post(
        "/v1/responses", json={"input": "Why?"}, headers={"Idempotency-Key": "k"}
    )  # It is the owner's key, whatever it was used for.
    assert reply.status_code == 422


def test_an_idempotency_key_works_after_limits_changed(
    web: Client,
    database: Database,
    database_url: str,
    redis_server: RedisServer,
    tokenizer_json: str,
) -> None:
    """The same key gives the same job, although a new request would now be refused."""

    def post(web: Client, key: str, **body: Any) -> Any:
        headers = {"Idempotency-Key": key}
        body = {"input": "Why?", "temperature": 1, **body}
        return web.post("/v1/responses", json=body, headers=headers)

    services_of(web).waiter.stopping = lambda: True  # so that no request waits for the end
    for key, body in {
        "background": {"background": True},
        "wait": {},
        "stream": {"stream": True},
    }.items():
        assert post(web, key, **body).status_code in (200, 202)
    ids = [
        job.id for job in queries.list_jobs(database, ANONYMOUS, limit=10, newest_first=False)[0]
    ]
    cancellation.cancel(database, ANONYMOUS, ids[1])

    # A worker whose context is too small for any question, and a web with a full queue.
    workers.register(
        database, "worker-2", "localhost", 2, Runtime({"engine": "none"}, 32, tokenizer_json)
    )
    with serving(database_url, redis_server.url, MAX_QUEUED="1") as restarted:
        assert post(restarted, "new").json["error"]["code"] == "context_length_exceeded"
        assert post(restarted, "background", background=True).json["id"] == ids[0]
        reply = post(restarted, "background", background=True, seed=1)
        assert (reply.status_code, reply.json["error"]["code"]) == (422, "idempotency_key_reused")
        with ExitStack() as stack:
            for _ in range(MAX_WAITING):
                stack.enter_context(services_of(restarted).waiter.slot())
            reply = post(restarted, "wait")  # The job has ended: there is nothing to wait for.
            assert (reply.status_code, reply.json["id"]) == (200, ids[1])
        cancellation.cancel(database, ANONYMOUS, ids[2])
        assert f'"id":"{ids[2]}"' in post(restarted, "stream", stream=True).text
        assert len(queries.list_jobs(database, ANONYMOUS, limit=10)[0]) == 3
        # A new version may refuse what an old one accepted: the digest is of the request as it was sent.
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                routes, "validate", Mock(side_effect=InvalidRequestError("No.", code="no"))
            )
            assert post(restarted, "background", background=True).json["id"] == ids[0]
