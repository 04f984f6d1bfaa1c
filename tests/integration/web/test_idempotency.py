"""Idempotency keys."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from typing import Any
from unittest.mock import Mock

import pytest
import sqlalchemy as sa

from jobs.database import Database
from jobs.database_clock import utcnow
from jobs.errors import IdempotencyError
from jobs.models import ANONYMOUS, KeyedRequest
from jobs.page_request import PageRequest
from jobs.protocol.errors import InvalidRequestError
from jobs.timing import SECONDS_PER_DAY
from jobs.use_cases import cancellation, queries, requests, stages, workers
from jobs.use_cases.requests import Keyed
from jobs.use_cases.workers import Runtime
from tests.conftest import WORKER
from tests.integration.web.client import Client, ask, finish, services_of, serving
from tests.servers import PATIENCE, RedisServer
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
    assert len(queries.list_jobs(database, ANONYMOUS, PageRequest(10))[0]) == 1


def test_owners_use_the_same_key_independently(database: Database) -> None:
    first, second = Keyed("ann", "k", "1" * 64), Keyed("bob", "k", "2" * 64)
    requests.note_outcome(database, first, status_code=204)
    assert requests.find_outcome(database, second) is None
    requests.note_outcome(database, second, status_code=500)
    assert requests.find_outcome(database, first) == {"status_code": 204}
    assert requests.find_outcome(database, second) == {"status_code": 500}
    with pytest.raises(IdempotencyError):
        requests.find_outcome(database, replace(first, digest="2" * 64))


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


def test_a_job_that_went_on_gets_its_first_reply_again(web: Client, database: Database) -> None:
    def post(path: str, key: str, body: Any = None) -> Any:
        return web.post(path, json=body, headers={"Idempotency-Key": key})

    def asked() -> Any:
        return post("/v1/responses", "a", {"input": "Why?", "background": True})

    first = asked()
    job = first.json["id"]

    def replayed() -> Any:
        return post(f"/api/jobs/{job}/replay", "r")

    def same(again: Any, first: Any) -> bool:
        names = ("Location", "Retry-After", "Content-Type")
        return (again.status_code, again.json, *map(again.headers.get, names)) == (
            first.status_code,
            first.json,
            *map(first.headers.get, names),
        )

    assert (first.status_code, first.json["status"]) == (202, "queued")
    finish(database, job, count=2)
    assert same(asked(), first)
    finish(database, job, first_stage=2)
    assert same(asked(), first)

    first_replay = replayed()
    finish(database, first_replay.json["id"])
    web.post(f"/api/jobs/{first_replay.json['id']}/reviews", json={"regeneration": 1})
    assert same(replayed(), first_replay)
    assert web.get(f"/v1/responses/{job}").json["status"] == "completed"


def test_what_is_repeated_later_changes_nothing_more(web: Client, database: Database) -> None:
    def post(path: str, key: str, body: Any = None) -> Any:
        return web.post(path, json=body, headers={"Idempotency-Key": key})

    def fail() -> None:
        claim = stages.claim(database, job, 0, WORKER, job_timeout=60)
        assert claim is not None
        stages.fail(database, claim, "server_error", "It broke.")

    # A job that failed again after its retry.
    job = ask(web)["id"]
    retry = f"/api/jobs/{job}/retry"
    assert post(retry, "r").status_code == 409
    fail()
    assert post(retry, "r").status_code == 202, "a request that was refused is not noted"
    fail()
    reply = post(retry, "r")
    assert (reply.status_code, reply.json["status"]) == (202, "failed")
    assert post(retry, "r2").json["status"] == "in_progress"

    # A queue that was resumed after its pause.
    pause, resume = "/api/system/pause", "/api/system/resume"
    assert post(pause, "p", {"note": "a"}).json["changed"]
    assert post(resume, "q").json["changed"]
    again = post(pause, "p", {"note": "a"}).json
    assert (again["changed"], again["pause"]["note"]) == (True, "a")
    assert again["pause"]["resumed_at"] is not None
    assert not web.post(resume).json["changed"]
    assert web.post(pause, json={"note": "b"}).json["changed"]
    again = post(resume, "q").json
    assert (again["changed"], again["pause"]["note"]) == (True, "a")
    assert web.post(resume).json["changed"]

    # An endpoint that was changed, and whose secret was replaced, since; and one that was deleted.
    made = {"url": "https://example.com/", "name": "a", "event_types": ["response.failed"]}
    first = post("/v1/webhook_endpoints", "e", made).json
    path = f"/v1/webhook_endpoints/{first['id']}"
    for key, name in (("b", "b"), ("c", "c"), ("b", "b")):
        changed = post(path, key, {"name": name}).json
    assert changed["name"] == "c"
    secrets = [
        post(f"{path}/rotate_secret", key, {}).json["signing_secret"] for key in ("s", "t", "s")
    ]
    assert secrets[0] != secrets[1] == secrets[2]
    again = post("/v1/webhook_endpoints", "e", made).json
    assert (again["id"], again["signing_secret"]) == (first["id"], secrets[1])
    assert web.delete(path).status_code == 200
    assert post("/v1/webhook_endpoints", "e", made).json["id"] != first["id"]

    # Jobs that match what others were deleted for.
    body = {"metadata": {"team": "red"}}
    old = ask(web, metadata=body["metadata"])["id"]
    assert post("/api/jobs/delete", "d", body).json["deleted"] == 1
    new = ask(web, metadata=body["metadata"])["id"]
    assert post("/api/jobs/delete", "d", body).json["deleted"] == 1
    assert (web.get(f"/api/jobs/{old}").status_code, web.get(f"/api/jobs/{new}").status_code) == (
        404,
        200,
    )

    # A week later.
    with database.write() as connection:
        past = utcnow(-requests.KEPT_DAYS * SECONDS_PER_DAY - 60)
        connection.execute(
            sa.update(KeyedRequest).where(KeyedRequest.key == "d").values(created_at=past)
        )
    assert requests.delete_requests(database) == 1
    assert post("/api/jobs/delete", "d", body).json["deleted"] == 1
    assert web.get(f"/api/jobs/{new}").status_code == 404


def test_of_two_requests_at_once_with_the_same_key_one_is_done(
    web: Client, database: Database
) -> None:
    made = {"url": "https://example.com/", "name": "a", "event_types": ["response.failed"]}
    begin = threading.Barrier(4, timeout=PATIENCE)

    def create(number: int) -> Any:
        client = web.application.test_client()
        begin.wait()
        body = {**made, "name": "b"} if number == 3 else made
        return client.post("/v1/webhook_endpoints", json=body, headers={"Idempotency-Key": "k"})

    with ThreadPoolExecutor(4) as pool:
        replies = list(pool.map(create, range(4)))
    done = {reply.json["id"] for reply in replies if reply.status_code == 200}
    assert len(done) == 1
    assert {reply.status_code for reply in replies} == {200, 422}
    assert [e["id"] for e in web.get("/v1/webhook_endpoints").json["data"]] == list(done)
    jobs = [ask(web)["id"] for _ in range(2)]
    for job in jobs:
        claim = stages.claim(database, job, 0, WORKER, job_timeout=60)
        assert claim is not None
        stages.fail(database, claim, "server_error", "It broke.")

    def retry(number: int) -> Any:
        client = web.application.test_client()
        begin.wait()
        headers = {"Idempotency-Key": "k2"}
        return client.post(f"/api/jobs/{jobs[number % 2]}/retry", headers=headers)

    with ThreadPoolExecutor(4) as pool:
        replies = list(pool.map(retry, range(4)))
    assert sorted(reply.status_code for reply in replies) == [202, 202, 422, 422]
    statuses = [web.get(f"/v1/responses/{job}").json["status"] for job in jobs]
    assert sorted(statuses) == ["failed", "in_progress"]


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
        job.id
        for job in queries.list_jobs(database, ANONYMOUS, PageRequest(10, newest_first=False))[0]
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
        assert len(queries.list_jobs(database, ANONYMOUS, PageRequest(10))[0]) == 3
        # A new version may refuse what an old one accepted: the digest is of the request as it was sent.
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                routes, "validate", Mock(side_effect=InvalidRequestError("No.", code="no"))
            )
            assert post(restarted, "background", background=True).json["id"] == ids[0]
