"""Refused requests: status, code, and the shape of the error."""

from __future__ import annotations

import json

from jobs.database import Database
from jobs.models import ANONYMOUS
from jobs.page_request import PageRequest
from jobs.use_cases import queries
from tests.integration.web.client import Client, ask, serving
from tests.servers import RedisServer

#: One example of each kind. The unit tests of ``jobs.protocol`` have all.
BAD_QUESTIONS = [
    ({}, "input", "missing_required_parameter"),
    ({"input": " \n\t"}, "input", "empty_input"),
    ({"input": 5}, "input", "invalid_type"),
    ({"input": [{"role": "wizard", "content": "x"}]}, "input.0.role", "invalid_value"),
    ({"input": "x", "temprature": 1}, "temprature", "unknown_parameter"),
    ({"input": "x", "max_output_tokens": 3000}, "max_output_tokens", "context_length_exceeded"),
    ({"input": "half \ud800"}, "input", "invalid_value"),
    ({"input": "x", "half \ud800": 1}, None, "invalid_value"),
    ({"input": "word " * 4100}, "input", "context_length_exceeded"),
    ({"input": "x", "instructions": "word " * 4100}, "input", "context_length_exceeded"),
]


def test_bad_questions_are_refused_and_not_stored(web: Client, database: Database) -> None:
    for body, param, code in BAD_QUESTIONS:
        reply = web.post("/v1/responses", data=json.dumps(body), content_type="application/json")
        error = reply.json["error"]
        assert (reply.status_code, error["param"], error["code"]) == (400, param, code), error
        assert error["type"] == "invalid_request_error"
    assert queries.list_jobs(database, ANONYMOUS, PageRequest(1)) == ([], False)


BAD_BODIES = [
    ("{", "application/json", 400, "invalid_json"),
    ("[1]", "application/json", 400, "invalid_type"),
    ('{"input": "x", "temperature": NaN}', "application/json", 400, "invalid_json"),
    # A reply that repeated it would be no JSON.
    (
        '{"input": [{"role": "user", "content": [{"type": "input_text", "text": "x", "annotations": [1e400]}]}]}',
        "application/json",
        400,
        "invalid_json",
    ),
    ('{"input": "x"}', "text/plain", 415, "unsupported_type"),
    ('{"input": "x", "model": "gpt-5"}', "application/json", 404, "model_not_found"),
    ('"' + "x" * (1 << 20) + '"', "application/json", 413, "request_too_large"),
]


def test_bad_bodies_are_refused(web: Client, database: Database) -> None:
    for data, content_type, status, code in BAD_BODIES:
        reply = web.post("/v1/responses", data=data, content_type=content_type)
        assert (reply.status_code, reply.json["error"]["code"]) == (status, code)
    assert queries.list_jobs(database, ANONYMOUS, PageRequest(1)) == ([], False)


def test_not_found_errors_have_the_shape_of_their_endpoint(web: Client) -> None:
    nothing = ("/v1", "/v1/nothing", "/v1/models/gpt")
    for path in ("/v1/responses/resp_none", "/v1/responses/a%00b", *nothing):
        reply = web.get(path)
        assert reply.status_code == 404
        assert set(reply.json["error"]) == {"message", "type", "code", "param"}
    reply = web.get("/api/jobs/resp_none")
    assert reply.status_code == 404
    assert reply.content_type == "application/problem+json"
    assert set(reply.json) == {"type", "title", "status", "detail", "code", "param"}
    assert (reply.json["type"], reply.json["title"]) == ("about:blank", "Not Found")
    assert web.get("/api/jobs?limit=0").json["param"] == "limit"
    reply = web.get("/jobs/resp_none")
    assert (reply.status_code, reply.mimetype) == (404, "text/html")
    assert "No such job" in reply.text
    reply = web.delete("/v1/models")
    assert reply.status_code == 405
    assert "GET" in reply.headers["Allow"]


def test_a_full_queue_replies_429(database_url: str, redis_server: RedisServer) -> None:
    with serving(database_url, redis_server.url, MAX_QUEUED="1") as web:
        ask(web)
        reply = web.post("/v1/responses", json={"input": "Why?", "background": True})
    error = reply.json["error"]
    assert (reply.status_code, error["code"]) == (429, "queue_full")
    assert error["type"] == "rate_limit_error"
    assert int(reply.headers["Retry-After"]) > 0
