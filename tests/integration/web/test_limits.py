"""Sizes, depths and characters that requests may have, wherever a client can put them."""

from __future__ import annotations

import itertools
import json
from typing import Any

from jobs.protocol.body import MAX_DEPTH
from tests.integration.web.client import Client, ask

#: Places that take any JSON, each with what is put there.
PLACES = {
    "options": '{"input": "Why?", "background": true, "prompt_cache_options": {"mode": %s}}',
    "tools": '{"input": "Why?", "background": true, "tools": %s}',
    "reasoning": '{"input": [{"type": "reasoning", "content": %s}, {"role": "user", "content": "Why?"}],'
    ' "background": true}',
    "unknown": '{"input": "Why?", "background": true, "odd": %s}',
    "chat": '{"messages": [{"role": "user", "content": "Why?", "annotations": %s}], "n": 2}',
}
TEXTS = ["\0", "\x01\x1b[31m", "\x7f\x85\u2028\u202e", "\ufffe\uffff", "\U0010ffff"]


def send(web: Client, body: str) -> Any:
    path = "/v1/chat/completions" if "messages" in body else "/v1/responses"
    return web.post(path, data=body, content_type="application/json")


def test_depth(web: Client) -> None:
    for place, (opening, closing) in itertools.product(PLACES.values(), ["[]", ('{"a":', "}")]):
        for depth in (MAX_DEPTH, 300, 500, 900, 5_000, 100_000):
            inner = opening * depth + ("1" if closing == "}" else "") + closing * depth
            reply = send(web, place % inner)
            assert (reply.status_code, reply.json["error"]["code"]) == (400, "invalid_json")
            assert "more than 100 arrays and objects" in reply.json["error"]["message"]


def test_what_is_not_too_deep_can_be_read(web: Client) -> None:
    deep = "[" * (MAX_DEPTH - 3) + "]" * (MAX_DEPTH - 3)
    job_id = send(web, PLACES["reasoning"] % deep).json["id"]
    for path in ("/api/jobs/{}", "/v1/responses/{}", "/v1/responses/{}/input_items"):
        assert web.get(path.format(job_id)).status_code == 200


def test_characters(web: Client) -> None:
    for text in TEXTS:
        check_characters(web, text)


def check_characters(web: Client, text: str) -> None:
    labels = {"user": text, "safety_identifier": text, "prompt_cache_key": text}
    items = [
        {"type": "reasoning", "id": text, "content": [{"type": text, text: text}]},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": text}], "phase": text},
        {"role": "user", "content": f"Why?{text}"},
    ]
    job = ask(web, input=items, instructions=text, include=[text], context="turns", **labels)
    read = web.get(f"/v1/responses/{job['id']}").json
    assert (read["instructions"], read["user"]) == (text, text)
    sent = web.get(f"/v1/responses/{job['id']}/input_items?order=asc").json["data"]
    assert sent[0]["content"] == [{"type": text, text: text}]
    assert web.get(f"/api/jobs/{job['id']}").json["input_items"] == items
    for query in ("after", "status", "since", "limit", "order"):
        reply = web.get("/v1/responses", query_string={query: text})
        assert reply.status_code in (400, 404), reply.text
    for path in (
        "/v1/responses/{}",
        "/api/jobs/{}",
        "/v1/models/{}",
        "/v1/responses/{}/input_items",
    ):
        assert web.get(path.format(json.dumps(text)[1:-1])).status_code == 404
    assert web.post("/v1/responses", json={text: 1}).status_code == 400


def test_headers(web: Client) -> None:
    job_id = ask(web)["id"]
    names = ["Idempotency-Key", "x-request-id", "Prefer", "If-None-Match", "Last-Event-ID"]
    for name, value in itertools.product(names, ["", "\xff\xa0", "x" * 10_000, "\x7f\x01"]):
        reply = web.get(f"/v1/responses/{job_id}", headers={name: value})
        assert reply.status_code == 200
        body = {"input": "Why?", "background": True}
        reply = web.post("/v1/responses", json=body, headers={name: value})
        refused = name == "Idempotency-Key" and len(value) in (0, 10_000)
        assert reply.status_code == (400 if refused else 202), (name, value)
