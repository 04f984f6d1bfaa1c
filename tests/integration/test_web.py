"""The web without a worker: what is refused, what is accepted, what is told."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from sqlalchemy.exc import OperationalError

import migrations
from jobs import settings
from jobs.models import Status, WorkerState
from jobs.pipeline import DEFAULT_SYSTEM, Sampling
from jobs.protocol.errors import InvalidRequestError
from jobs.store import Output, Runtime, Store
from tests.conftest import WORKER
from tests.servers import RedisServer
from web import create_app
from web.services import Services
from web.v1 import routes
from web.waiting import MAX_WAITING

#: Flask's test client, whose types call every reply's JSON possibly None.
Client = Any

OUTPUT = Output("A text.", [2, 5], 20, 3, "stop", 1024, 0.0)


@pytest.fixture
def web(database_url: str, redis_server: RedisServer, checkpoint: Path) -> Iterator[Client]:
    """A client of the application, with a worker's model known but nobody at work."""
    app = create_app(
        settings.load({"HELIXQ_DATABASE_URL": database_url, "HELIXQ_REDIS_URL": redis_server.url})
    )
    found: Services = app.extensions["helixq"]
    migrations.migrate(found.store.engine)
    tokenizer = (checkpoint / "base" / "tokenizer.json").read_text()
    found.store.register(WORKER, "localhost", 1, Runtime({"engine": "none"}, 4096, tokenizer))
    with app.test_client() as client:
        yield client
    found.store.close()
    found.progress.close()


@pytest.fixture
def store(web: Client) -> Store:
    found: Services = web.application.extensions["helixq"]
    return found.store


def ask(web: Client, **body: Any) -> dict[str, Any]:
    reply = web.post("/v1/responses", json={"input": "Why?", "background": True, **body})
    assert reply.status_code == 202, reply.text
    answer: dict[str, Any] = reply.json
    return answer


def finish(store: Store, job_id: str, stages: int = 3) -> None:
    """Do a worker's work."""
    for stage_index in range(stages):
        claim = store.claim(job_id, stage_index, WORKER, job_timeout=60)
        assert claim is not None
        store.record(claim, OUTPUT)


def test_a_question_is_accepted(web: Client, store: Store) -> None:
    reply = web.post("/v1/responses", json={"input": "Why?", "background": True})
    assert reply.status_code == 202
    assert reply.headers["Location"] == f"/v1/responses/{reply.json['id']}"
    assert reply.headers["Retry-After"] == "1"
    body = reply.json
    assert (body["status"], body["model"], body["object"]) == ("queued", "helixnet", "response")
    assert body["instructions"] == DEFAULT_SYSTEM
    assert body["output"] == []
    job = store.job(body["id"])
    card = Sampling()
    assert (job.temperature, job.top_k, job.top_p) == (card.temperature, card.top_k, card.top_p)
    assert (job.max_output_tokens, job.rounds) == (1024, 1)
    assert job.published_at is not None


def test_every_parameter_reaches_the_job(web: Client, store: Store) -> None:
    body = ask(
        web,
        input=[
            {"role": "user", "content": "Before"},
            {"role": "assistant", "content": [{"type": "output_text", "text": "Answer"}]},
            {
                "role": "user",
                "content": [
                    {"type": "input_text", "text": "Wh"},
                    {"type": "input_text", "text": "y?\0"},
                ],
            },
        ],
        instructions="Rhyme.",
        model="helixnet",
        temperature=0,
        top_p=0.5,
        top_k=0,
        seed=2**53 - 1,
        rounds=5,
        priority=9,
        max_output_tokens=33,
        metadata={"team": "blau"},
    )
    job = store.job(body["id"])
    assert (job.question, job.system) == ("Why?\0", "Rhyme.")
    assert (job.temperature, job.top_p, job.top_k, job.seed) == (0, 0.5, 0, 2**53 - 1)
    assert (job.rounds, job.priority, job.max_output_tokens) == (5, 9, 33)
    assert body["metadata"] == job.metadata_ == {"team": "blau"}


BAD_BODIES = [
    ({}, "input", "missing_required_parameter"),
    ({"input": ""}, "input", "empty_input"),
    ({"input": " \n\t"}, "input", "empty_input"),
    ({"input": []}, "input", "empty_input"),
    ({"input": [{"role": "assistant", "content": "x"}]}, "input", "empty_input"),
    ({"input": 5}, "input", "invalid_type"),
    ({"input": None}, "input", "missing_required_parameter"),
    ({"input": ["x"]}, "input.0", "invalid_type"),
    ({"input": "x", "half \ud800": 1}, None, "invalid_value"),
    ({"input": "x", "metadata": {"half \ud800": "1"}}, "metadata", "invalid_value"),
    ({"input": [{"role": "wizard", "content": "x"}]}, "input.0.role", "invalid_value"),
    ({"input": [{"content": "x"}]}, "input.0.role", "missing_required_parameter"),
    ({"input": [{"role": "user"}]}, "input.0.content", "missing_required_parameter"),
    ({"input": [{"role": "user", "content": 1}]}, "input.0.content", "invalid_type"),
    (
        {"input": [{"role": "user", "content": [{"type": "input_image", "text": "x"}]}]},
        "input.0.content.0.type",
        "invalid_value",
    ),
    ({"input": [{"role": "user", "content": "x", "odd": 1}]}, "input.0.odd", "unknown_parameter"),
    ({"input": "x", "temprature": 1}, "temprature", "unknown_parameter"),
    ({"input": "x", "temperature": "hot"}, "temperature", "invalid_type"),
    ({"input": "x", "temperature": True}, "temperature", "invalid_type"),
    ({"input": "x", "temperature": -1}, "temperature", "invalid_value"),
    ({"input": "x", "temperature": 2.1}, "temperature", "invalid_value"),
    ({"input": "x", "top_p": 0}, "top_p", "invalid_value"),
    ({"input": "x", "top_k": 1.5}, "top_k", "invalid_type"),
    ({"input": "x", "max_output_tokens": 0}, "max_output_tokens", "invalid_value"),
    ({"input": "x", "max_output_tokens": 3000}, "max_output_tokens", "context_length_exceeded"),
    ({"input": "x", "seed": -1}, "seed", "invalid_value"),
    ({"input": "x", "seed": 2**53}, "seed", "invalid_value"),
    ({"input": "x", "rounds": 6}, "rounds", "invalid_value"),
    ({"input": "x", "priority": 10}, "priority", "invalid_value"),
    ({"input": "x", "background": "yes"}, "background", "invalid_type"),
    ({"input": "x", "instructions": 1}, "instructions", "invalid_type"),
    ({"input": "x", "metadata": {"a": 1}}, "metadata.a", "invalid_type"),
    ({"input": "x", "metadata": {"a": "\0"}}, "metadata", "invalid_value"),
    ({"input": "x", "metadata": {str(n): "" for n in range(17)}}, "metadata", "invalid_value"),
    ({"input": "half \ud800"}, "input", "invalid_value"),
    ({"input": "word " * 4100}, "input", "context_length_exceeded"),
    ({"input": "x", "instructions": "word " * 4100}, "input", "context_length_exceeded"),
]


def test_bad_questions_are_refused_and_not_stored(web: Client, store: Store) -> None:
    for body, param, code in BAD_BODIES:
        reply = web.post("/v1/responses", data=json.dumps(body), content_type="application/json")
        error = reply.json["error"]
        assert (reply.status_code, error["param"], error["code"]) == (400, param, code), error
        assert error["type"] == "invalid_request_error"
        assert error["message"].endswith(".")
        assert "Message" not in error["message"]
    assert store.page(limit=1) == ([], False)


BAD_DATA = [
    ("{", "application/json", 400, "invalid_json"),
    ("", "application/json", 400, "invalid_json"),
    ("[1]", "application/json", 400, "invalid_type"),
    ("[" * 100_000, "application/json", 400, "invalid_json"),
    (b"\xff", "application/json", 400, "invalid_json"),
    ('{"input": "x", "seed": ' + "9" * 5000 + "}", "application/json", 400, "invalid_json"),
    ('{"input": "x", "temperature": NaN}', "application/json", 400, "invalid_value"),
    ('{"input": "x"}', "text/plain", 415, "unsupported_type"),
    ('{"input": "x", "model": "gpt-5"}', "application/json", 404, "model_not_found"),
    ('"' + "x" * (1 << 20) + '"', "application/json", 413, "request_too_large"),
]


def test_bad_bodies_are_refused(web: Client, store: Store) -> None:
    for data, content_type, status, code in BAD_DATA:
        reply = web.post("/v1/responses", data=data, content_type=content_type)
        assert (reply.status_code, reply.json["error"]["code"]) == (status, code)
        assert "sys." not in reply.text
        assert "recursion" not in reply.text
    assert store.page(limit=1) == ([], False)


def test_unknown_things_have_errors_in_the_shape_of_their_place(web: Client) -> None:
    nothing = ("/v1", "/v1/nothing", "/v1/models/gpt")
    for path in ("/v1/responses/resp_none", "/v1/responses/a%00b", *nothing):
        reply = web.get(path)
        assert reply.status_code == 404
        assert set(reply.json["error"]) == {"message", "type", "code", "param"}
    reply = web.get("/api/jobs/resp_none")
    assert reply.status_code == 404
    assert reply.content_type == "application/problem+json"
    assert set(reply.json) >= {"title", "status", "detail"}
    reply = web.get("/jobs/resp_none")
    assert (reply.status_code, reply.mimetype) == (404, "text/html")
    assert "No such job" in reply.text
    reply = web.delete("/v1/models")
    assert reply.status_code == 405
    assert "GET" in reply.headers["Allow"]


def test_a_finished_job_reads_as_a_response(web: Client, store: Store) -> None:
    job_id = ask(web, rounds=2)["id"]
    finish(store, job_id, stages=5)
    body = web.get(f"/v1/responses/{job_id}").json
    assert body["status"] == "completed"
    assert body["completed_at"] >= body["created_at"]
    kinds = [(item["type"], item["id"].rsplit("_", 1)[0]) for item in body["output"]]
    assert kinds == [
        ("reasoning", "rs_actor_1"),
        ("reasoning", "rs_critic_1"),
        ("reasoning", "rs_regenerator_1"),
        ("reasoning", "rs_critic_2"),
        ("message", "msg_regenerator_2"),
    ]
    assert body["output"][1]["content"] == [{"type": "reasoning_text", "text": "A text."}]
    assert body["output"][4]["content"][0]["text"] == "A text."
    assert body["usage"] == {
        "input_tokens": 100,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": 15,
        "output_tokens_details": {"reasoning_tokens": 12},
        "total_tokens": 115,
    }


def test_an_unchanged_job_is_not_sent_again(web: Client, store: Store) -> None:
    job_id = ask(web)["id"]
    first = web.get(f"/v1/responses/{job_id}")
    tag = {"If-None-Match": first.headers["ETag"]}
    assert web.get(f"/v1/responses/{job_id}", headers=tag).status_code == 304
    assert web.head(f"/v1/responses/{job_id}", headers=tag).status_code == 304
    other = web.get(f"/v1/responses/{job_id}", headers={"If-Match": '"other"'})
    assert (other.status_code, other.json["error"]["code"]) == (412, "precondition_failed")
    store.cancel(job_id)
    assert web.get(f"/v1/responses/{job_id}", headers=tag).status_code == 200


def test_prefer_wait_holds_the_reply(web: Client, store: Store) -> None:
    job_id = ask(web)["id"]
    reply = web.get(f"/v1/responses/{job_id}", headers={"Prefer": "wait=1"})
    assert (reply.status_code, reply.json["status"]) == (200, "queued")
    store.cancel(job_id)
    reply = web.get(f"/v1/responses/{job_id}", headers={"Prefer": "wait=60"})
    assert reply.json["status"] == "cancelled"
    assert "Retry-After" not in reply.headers


def test_a_failed_job_says_why(web: Client, store: Store) -> None:
    job_id = ask(web)["id"]
    claim = store.claim(job_id, 0, WORKER, job_timeout=60)
    assert claim is not None
    store.fail(claim, "server_error", "the model gave no numbers")
    body = web.get(f"/v1/responses/{job_id}").json
    assert body["status"] == "failed"
    assert body["error"] == {"code": "server_error", "message": "the model gave no numbers"}
    assert "the model gave no numbers" in web.get(f"/jobs/{job_id}").text


def test_an_answer_cut_short_says_so(web: Client, store: Store) -> None:
    job_id = ask(web)["id"]
    for stage_index in range(3):
        claim = store.claim(job_id, stage_index, WORKER, job_timeout=60)
        assert claim is not None
        store.record(claim, Output("A text.", [7], 20, 3, "length", 3, 0.0))
    body = web.get(f"/v1/responses/{job_id}").json
    assert body["status"] == "incomplete"
    assert body["incomplete_details"] == {"reason": "max_output_tokens"}
    assert {item["status"] for item in body["output"]} == {"incomplete"}


def test_cancel_is_final_and_may_be_repeated(web: Client) -> None:
    job_id = ask(web)["id"]
    for _ in range(2):
        reply = web.post(f"/v1/responses/{job_id}/cancel")
        assert (reply.status_code, reply.json["status"]) == (200, "cancelled")
    assert web.post("/v1/responses/resp_none/cancel").status_code == 404


def test_a_cancelled_attempt_is_told_as_running_until_it_stops(web: Client, store: Store) -> None:
    job_id = ask(web)["id"]
    claim = store.claim(job_id, 0, WORKER, job_timeout=60)
    assert claim is not None
    web.post(f"/v1/responses/{job_id}/cancel")
    history = web.get(f"/api/jobs/{job_id}").json
    assert (history["status"], history["attempts"][0]["status"]) == ("cancelled", "running")
    page = web.get(f"/jobs/{job_id}").text
    assert "stopping" in page
    assert "data-response" in page, "the page waits for the text"
    store.keep_partial(claim, OUTPUT)
    history = web.get(f"/api/jobs/{job_id}").json
    assert (history["status"], history["attempts"][0]["status"]) == ("cancelled", "cancelled")
    page = web.get(f"/jobs/{job_id}").text
    assert OUTPUT.text in page
    assert "data-response" not in page


def test_the_list_pages_newest_first(web: Client) -> None:
    ids = [ask(web)["id"] for _ in range(3)]
    first = web.get("/v1/responses?limit=2").json
    assert [job["id"] for job in first["data"]] == [ids[2], ids[1]]
    assert (first["has_more"], first["last_id"]) == (True, ids[1])
    rest = web.get(f"/v1/responses?limit=2&after={first['last_id']}").json
    assert ([job["id"] for job in rest["data"]], rest["has_more"]) == ([ids[0]], False)
    assert web.get("/v1/responses?order=asc&limit=1").json["data"][0]["id"] == ids[0]
    for query in ("limit=0", "limit=x", "limit=101", "order=up"):
        assert web.get(f"/v1/responses?{query}").status_code == 400
    assert web.get("/v1/responses?after=resp_none").status_code == 404


def test_an_idempotency_key_asks_once(web: Client, store: Store) -> None:
    def post(key: str, **body: Any) -> Any:
        headers = {"Idempotency-Key": key}
        return web.post("/v1/responses", json={"background": True, **body}, headers=headers)

    first, again = post("k", input="Why?"), post("k", input="Why?")
    assert first.json["id"] == again.json["id"]
    assert post("k", input="Why?", seed=None).json["id"] == first.json["id"]
    other = post("k", input="How?")
    assert (other.status_code, other.json["error"]["code"]) == (422, "idempotency_key_reused")
    assert post("", input="Why?").status_code == 400
    assert len(store.page(limit=10)[0]) == 1


def test_what_was_accepted_stays_accepted_whatever_has_changed(
    web: Client, store: Store, database_url: str, redis_server: RedisServer, checkpoint: Path
) -> None:
    """The same key gives the same job, although a new request would be refused by now."""

    def post(web: Client, key: str, **body: Any) -> Any:
        headers = {"Idempotency-Key": key}
        body = {"input": "Why?", "temperature": 1, **body}
        return web.post("/v1/responses", json=body, headers=headers)

    kinds = {"background": {"background": True}, "wait": {}, "stream": {"stream": True}}
    found: Services = web.application.extensions["helixq"]
    found.waiter.stopping = lambda: True  # so that nothing waits for the end
    for key, body in kinds.items():
        assert post(web, key, **body).status_code in (200, 202)
    ids = [job.id for job in store.page(limit=10, newest_first=False)[0]]
    store.cancel(ids[1])

    # A worker with a model that has room for no question, and a web that takes no more of them.
    tokenizer = (checkpoint / "base" / "tokenizer.json").read_text()
    store.register("worker-2", "localhost", 2, Runtime({"engine": "none"}, 32, tokenizer))
    other = create_app(
        settings.load(
            {
                "HELIXQ_DATABASE_URL": database_url,
                "HELIXQ_REDIS_URL": redis_server.url,
                "HELIXQ_MAX_QUEUED": "1",
            }
        )
    )
    changed: Services = other.extensions["helixq"]
    client: Client = other.test_client()
    assert post(client, "new").json["error"]["code"] == "context_length_exceeded"
    assert post(client, "background", background=True).json["id"] == ids[0]
    reply = post(client, "background", background=True, seed=1)
    assert (reply.status_code, reply.json["error"]["code"]) == (422, "idempotency_key_reused")
    with ExitStack() as stack:
        for _ in range(MAX_WAITING):
            stack.enter_context(changed.waiter.slot())
        reply = post(client, "wait")  # it has ended: there is nothing to wait for
        assert (reply.status_code, reply.json["id"]) == (200, ids[1])
    store.cancel(ids[2])
    assert f'"id":"{ids[2]}"' in post(client, "stream", stream=True).text
    assert len(store.page(limit=10)[0]) == 3
    # What a version takes, the next one may not; the digest is of the request as it was sent.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(routes, "validate", Mock(side_effect=InvalidRequestError("No.", code="no")))
        assert post(client, "background", background=True).json["id"] == ids[0]
    changed.store.close()
    changed.progress.close()


def test_a_full_queue_answers_429(database_url: str, redis_server: RedisServer) -> None:
    app = create_app(
        settings.load(
            {
                "HELIXQ_DATABASE_URL": database_url,
                "HELIXQ_REDIS_URL": redis_server.url,
                "HELIXQ_MAX_QUEUED": "1",
            }
        )
    )
    found: Services = app.extensions["helixq"]
    migrations.migrate(found.store.engine)
    web: Client = app.test_client()
    ask(web)
    reply = web.post("/v1/responses", json={"input": "Why?", "background": True})
    assert (reply.status_code, reply.json["error"]["code"]) == (429, "queue_full")
    assert int(reply.headers["Retry-After"]) > 0
    found.store.close()


def events(web: Client, job_id: str, **query: Any) -> list[dict[str, Any]]:
    reply = web.get(f"/v1/responses/{job_id}", query_string={"stream": "true", **query})
    assert reply.mimetype == "text/event-stream"
    blocks = reply.text.strip().split("\n\n")
    found = []
    for block in blocks:
        fields = dict(line.split(": ", 1) for line in block.split("\n"))
        event = json.loads(fields["data"])
        assert fields["event"] == event["type"]
        assert int(fields["id"]) == event["sequence_number"]
        found.append(event)
    return found


def test_the_events_of_a_finished_job(web: Client, store: Store) -> None:
    job_id = ask(web)["id"]
    finish(store, job_id)
    told = events(web, job_id)
    assert [event["sequence_number"] for event in told] == list(range(len(told)))
    reasoning = [
        "response.output_item.added",
        "response.content_part.added",
        "response.reasoning_text.delta",
        "response.reasoning_text.delta",
        "response.reasoning_text.done",
        "response.content_part.done",
        "response.output_item.done",
    ]
    message = [name.replace("reasoning_text", "output_text") for name in reasoning]
    begin = ["response.created", "response.queued", "response.in_progress"]
    assert [event["type"] for event in told] == [
        *begin,
        *reasoning,
        *reasoning,
        *message,
        "response.completed",
    ]
    assert told[-1]["response"] == web.get(f"/v1/responses/{job_id}").json
    assert told[0]["response"]["status"] == "queued"
    assert [e["delta"] for e in told if e["type"] == "response.output_text.delta"] == [
        "A ",
        "text.",
    ]
    assert events(web, job_id) == told
    assert events(web, job_id, starting_after=9) == told[10:]
    assert web.get(f"/v1/responses/{job_id}?stream=true&starting_after=x").status_code == 400


def test_the_events_of_a_cancelled_job_end(web: Client, store: Store) -> None:
    job_id = ask(web)["id"]
    store.cancel(job_id)
    told = events(web, job_id)
    assert told[-1]["type"] == "response.incomplete"
    assert told[-1]["response"]["status"] == "cancelled"


def test_a_stream_ends_even_if_its_text_was_lost(web: Client, store: Store) -> None:
    """Text that was told live went down with its worker: fewer events are left than were sent."""
    job_id = ask(web)["id"]
    assert store.claim(job_id, 0, WORKER, job_timeout=60) is not None
    store.cancel(job_id)
    [last] = events(web, job_id, starting_after=40)
    assert (last["type"], last["sequence_number"]) == ("response.incomplete", 41)


def test_when_too_many_wait_one_more_is_sent_away(web: Client, store: Store) -> None:
    found: Services = web.application.extensions["helixq"]
    job_id = ask(web)["id"]
    with ExitStack() as stack:
        for _ in range(MAX_WAITING):
            stack.enter_context(found.waiter.slot())
        for reply in (
            web.post("/v1/responses", json={"input": "Why?"}),
            web.get(f"/v1/responses/{job_id}?stream=true"),
            web.get(f"/v1/responses/{job_id}", headers={"Prefer": "wait=5"}),
        ):
            assert (reply.status_code, reply.json["error"]["code"]) == (503, "too_many_waiting")
        ask(web)
    assert len(store.page(limit=10)[0]) == 2
    store.cancel(job_id)
    for _ in range(3):  # streams give their place back
        assert web.get(f"/v1/responses/{job_id}?stream=true").text
    with ExitStack() as stack:
        for _ in range(MAX_WAITING):
            stack.enter_context(found.waiter.slot())


def test_a_server_that_stops_leaves_the_job_to_be_polled(web: Client, store: Store) -> None:
    found: Services = web.application.extensions["helixq"]
    found.waiter.stopping = lambda: True
    reply = web.post("/v1/responses", json={"input": "Why?"})
    assert (reply.status_code, reply.json["status"]) == (202, "queued")
    assert reply.headers["Location"].endswith(store.page(limit=1)[0][0].id)


def test_the_history_tells_everything(web: Client, store: Store) -> None:
    job_id = ask(web, seed=5)["id"]
    finish(store, job_id)
    history = web.get(f"/api/jobs/{job_id}").json
    assert (history["question"], history["status"], history["seed"]) == ("Why?", "completed", 5)
    assert [a["role"] for a in history["attempts"]] == ["actor", "critic", "regenerator"]
    first = history["attempts"][0]
    assert first["prompt"] == f"SYSTEM: {DEFAULT_SYSTEM} \nUSER: Why? \nASSISTANT: "
    assert (first["output"], first["finish_reason"], first["number"]) == ("A text.", "stop", 1)
    assert first["worker"]["engine"] == "none"
    for name in ("queued_at", "started_at", "first_token_at", "finished_at"):
        assert first[name].endswith("Z")


def test_models(web: Client) -> None:
    assert [model["id"] for model in web.get("/v1/models").json["data"]] == ["helixnet"]
    assert web.get("/v1/models/helixnet").json["object"] == "model"


def test_ready_means_database_redis_and_a_worker(web: Client, store: Store) -> None:
    assert web.get("/healthz").json == {"status": "ok"}
    reply = web.get("/readyz")
    assert reply.status_code == 503
    assert reply.json["checks"]["worker"] == "a worker loads its model"
    store.set_worker_state(WORKER, WorkerState.STOPPED)
    assert web.get("/readyz").json["checks"]["worker"] == "no worker is ready"
    store.set_worker_state(WORKER, WorkerState.READY)
    assert web.get("/readyz").json["checks"] == {
        "database": "ok",
        "redis": "ok",
        "worker": "ok",
    }


def test_without_redis_questions_are_kept_for_later(database_url: str) -> None:
    app = create_app(
        settings.load(
            {"HELIXQ_DATABASE_URL": database_url, "HELIXQ_REDIS_URL": "unix:///nowhere.sock"}
        )
    )
    found: Services = app.extensions["helixq"]
    migrations.migrate(found.store.engine)
    web: Client = app.test_client()
    job = found.store.job(ask(web)["id"])
    assert (job.status, job.published_at) == (Status.QUEUED, None)
    # A fault of ours: the database, too, is gone right after the job was kept.
    with pytest.MonkeyPatch.context() as patch:
        away = OperationalError("", {}, Exception("away"))
        patch.setattr(found.store, "unpublish", Mock(side_effect=away))
        job = found.store.job(ask(web)["id"])
    assert job.status is Status.QUEUED, "no client hears that it was refused"
    reply = web.get("/readyz")
    assert (reply.status_code, reply.json["checks"]["redis"]) == (503, "unreachable")
    found.store.close()


def test_without_the_database_nothing_is_accepted(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    app = create_app(
        settings.load(
            {
                "HELIXQ_DATABASE_URL": f"sqlite:///{tmp_path}/no/such/folder.sqlite3",
                "HELIXQ_REDIS_URL": redis_server.url,
            }
        )
    )
    web: Client = app.test_client()
    reply = web.post("/v1/responses", json={"input": "Why?", "background": True})
    assert (reply.status_code, reply.json["error"]["code"]) == (503, "unavailable")
    assert "Retry-After" in reply.headers
    assert web.get("/jobs").status_code == 503
    assert web.get("/readyz").json["checks"]["database"] == "unreachable"


def test_other_sites_may_not_ask(web: Client, store: Store) -> None:
    for headers in (
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://[bad"},
        {"Sec-Fetch-Site": "cross-site"},
    ):
        reply = web.post("/", data={"question": "Why?"}, headers=headers)
        assert reply.status_code == 403
    for path in ("/", "/v1/models", "/api/jobs/resp_0"):
        assert web.get(path, headers={"Host": "evil.example"}).status_code == 400
    for host in ("localhost", "127.0.0.1:8000", "[::1]:8000"):
        assert web.get("/", headers={"Host": host}).status_code == 200
    assert store.page(limit=1) == ([], False)


def test_the_form_keeps_what_was_typed(web: Client, store: Store) -> None:
    reply = web.post("/", data={"question": "  two\r\nlines <b>&"})
    assert reply.status_code == 303
    [job] = store.page(limit=2)[0]
    assert job.question == "  two\nlines <b>&"
    page = web.get(reply.headers["Location"]).text
    assert "lines &lt;b&gt;&amp;" in page
    refused = web.post("/", data={"question": "word " * 4100})
    assert refused.status_code == 400
    assert "too long" in refused.text
    assert "word word" in refused.text


def test_the_jobs_page_lists_and_pages(web: Client) -> None:
    assert "Nothing was asked yet" in web.get("/jobs").text
    for number in range(26):
        ask(web, input=f"Question {number}?")
    page = web.get("/jobs").text
    assert "Question 25?" in page
    assert "Question 0?" not in page
    older = page.split('href="/jobs?after=')[1].split('"')[0]
    assert "Question 0?" in web.get(f"/jobs?after={older}").text


def test_pages_bring_no_code_from_elsewhere(web: Client) -> None:
    reply = web.get("/")
    assert "default-src 'none'" in reply.headers["Content-Security-Policy"]
    assert "<script>" not in reply.text
    assert " style=" not in reply.text
