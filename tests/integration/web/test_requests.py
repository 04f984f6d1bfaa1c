"""Requests as clients and proxies send them: ids, compressed bodies, slashes, base URLs."""

from __future__ import annotations

import gzip
import json
import logging
import re
import zlib
from collections.abc import Iterator

import pytest
from flask import Response

from jobs import logs
from tests.integration.web.client import Client
from tests.integration.web.sealed_jobs import ended
from web import MAX_BODY

QUESTION = json.dumps({"input": "Why?", "background": True}).encode()
JSON = {"Content-Type": "application/json"}


def test_every_reply_has_a_request_id(web: Client) -> None:
    replies = [
        web.get("/healthz"),
        web.get("/v1/responses"),
        web.get("/v1/nothing"),
        web.post("/v1/responses", data=b"{", headers=JSON),
        web.get("/static/style.css"),
    ]
    ids = [reply.headers["x-request-id"] for reply in replies]
    assert len(set(ids)) == len(ids)
    assert all(request_id.startswith("req_") for request_id in ids)


def test_a_proxys_request_id_is_kept_if_it_is_harmless(web: Client) -> None:
    def request_id(given: str) -> str:
        return str(web.get("/healthz", headers={"X-Request-ID": given}).headers["x-request-id"])

    assert request_id("abc-1.2:3") == "abc-1.2:3"
    for given in ("", "a b", "\xe9", "x" * 129):
        assert request_id(given).startswith("req_")


def stream() -> Iterator[str]:
    logging.getLogger("waitress").warning("of a library")
    yield "streamed"


def test_the_log_has_the_request_id(web: Client, capsys: pytest.CaptureFixture[str]) -> None:
    handlers = logging.getLogger().handlers[:]
    logs.configure("json", "web")
    try:
        web.application.view_functions["health.healthz"] = lambda: 1 / 0
        web.application.config["PROPAGATE_EXCEPTIONS"] = False
        assert web.get("/healthz", headers={"X-Request-ID": "abc"}).status_code == 500
        web.application.view_functions["api.retrieve_job"] = lambda job_id: 1 / 0  # noqa: ARG005 (Flask names it)
        assert web.get("/api/jobs/resp_1", headers={"X-Request-ID": "abc"}).status_code == 500
        # Of a trace, and while its body is sent, which is after Flask is done with it.
        web.application.view_functions["health.healthz"] = lambda: Response(stream())
        traced = {"X-Request-ID": "abd", "traceparent": f"00-{'a' * 32}-{'b' * 16}-00"}
        assert web.get("/healthz", headers=traced).text == "streamed"
        logs.configure("text", "web")
        assert web.get("/api/jobs/resp_1", headers={"X-Request-ID": "abc"}).status_code == 500
    finally:
        logging.getLogger().handlers[:] = handlers
    written = capsys.readouterr().err.splitlines()
    first, of_job, streamed = (json.loads(line) for line in written[:3])
    assert (first["request_id"], first["message"]) == ("abc", "request failed")
    assert (of_job["request_id"], of_job["job_id"]) == ("abc", "resp_1")
    assert "job_id" not in first
    assert (streamed["request_id"], streamed["trace_id"]) == ("abd", "a" * 32)
    text = next(line for line in written[3:] if "request failed" in line)
    assert set(text.split("request failed ")[1].split()) == {"request_id=abc", "job_id=resp_1"}


def test_integers_may_be_written_with_a_fraction_of_zero(web: Client) -> None:
    """As encoders of JSON do that know numbers alone, and no integers."""
    whole = {"seed": 622, "top_k": 7, "max_output_tokens": 100, "rounds": 2, "priority": 1}
    asked = {"input": "Why?", "background": True, "temperature": 1, "presence_penalty": 0}
    bodies = [json.dumps({**asked, **whole, "top_logprobs": 0, "max_tool_calls": 3})]
    bodies.append(re.sub(r"(\d)([,}])", r"\1.0\2", bodies[0]))
    assert '"seed": 622.0' in bodies[1]
    headers = {**JSON, "Idempotency-Key": "k"}
    first, second = (web.post("/v1/responses", data=body, headers=headers) for body in bodies)
    assert (first.status_code, first.data) == (202, second.data), "they are the same request"
    assert {name: second.json[name] for name in whole} == whole
    reviewed = web.post(
        f"/api/jobs/{ended(web)}/reviews", data=b'{"regeneration": -1.0}', headers=JSON
    )
    assert (reviewed.status_code, reviewed.json["regeneration"]) == (201, -1)
    for odd in (622.5, "622", 2.0**53, 1e300):
        refused = web.post("/v1/responses", json={"input": "Why?", "seed": odd})
        assert (refused.status_code, refused.json["error"]["param"]) == (400, "seed")


def test_a_body_may_be_gzipped(web: Client) -> None:
    def post(body: bytes, encoding: str) -> tuple[int, str | None]:
        headers = {**JSON, "Content-Encoding": encoding}
        reply = web.post("/v1/responses", data=body, headers=headers)
        return reply.status_code, (reply.json["error"] or {}).get("code")

    assert post(gzip.compress(QUESTION), "gzip") == (202, None)
    assert post(QUESTION, "identity") == (202, None)
    assert post(zlib.compress(QUESTION), "deflate") == (415, "unsupported_encoding")
    assert post(b"", "br") == (415, "unsupported_encoding")
    for body in (QUESTION, b"", gzip.compress(QUESTION)[:-1], gzip.compress(QUESTION) + b"x"):
        assert post(body, "gzip") == (400, "invalid_encoding")
    # What unpacks to more than the limit is refused like what is sent larger.
    assert post(gzip.compress(b" " * MAX_BODY), "gzip") == (400, "invalid_json")
    assert post(gzip.compress(b" " * (MAX_BODY + 1)), "gzip") == (413, "request_too_large")


def test_an_unsupported_type_or_encoding_says_what_is_supported(web: Client) -> None:
    """As RFC 9110, section 15.5.16."""
    form = "multipart/form-data; boundary=x"
    for path, headers, name, supported in (
        ("/v1/responses", {"Content-Type": "text/plain"}, "Accept", "application/json"),
        ("/v1/responses", {**JSON, "Content-Encoding": "br"}, "Accept-Encoding", "gzip"),
        ("/v1/files", JSON, "Accept", "multipart/form-data"),
        (
            "/v1/files",
            {"Content-Type": form, "Content-Encoding": "gzip"},
            "Accept-Encoding",
            "identity",
        ),
    ):
        reply = web.post(path, data=QUESTION, headers=headers)
        assert (reply.status_code, reply.headers[name]) == (415, supported)


@pytest.mark.parametrize("path", ["/v1/responses/", "/v1/models/", "/v1/models/helixnet/"])
def test_a_trailing_slash_makes_no_difference(web: Client, path: str) -> None:
    assert web.get(path).json == web.get(path.rstrip("/")).json


def test_websockets_are_refused_as_such(web: Client) -> None:
    upgrade = {"Upgrade": "websocket", "Connection": "Upgrade"}
    for path in ("/v1/responses", "/v1/models"):
        reply = web.get(path, headers=upgrade)
        assert (reply.status_code, reply.json["error"]["code"]) == (400, "bad_request")
        assert "WebSockets" in reply.json["error"]["message"]


@pytest.mark.parametrize("alias", ["/livez", "/health"])
def test_healthz_has_aliases(web: Client, alias: str) -> None:
    assert web.get(alias).json == web.get("/healthz").json == {"status": "ok"}


@pytest.mark.parametrize(
    ("method", "path", "hint"),
    [
        ("POST", "/responses", "ends with `/v1`."),
        ("POST", "/chat/completions", "ends with `/v1`."),
        ("GET", "/models", "ends with `/v1`."),
        ("POST", "/v1/completions", "Ask with `/v1/chat/completions` or `/v1/responses`."),
        ("GET", "/responses/resp_1", "ends with `/v1`."),
        ("POST", "/v1/v1/responses", "should end without it."),
        # As Groq's and Azure's clients.
        ("POST", "/openai/v1/chat/completions", "is at `/v1/chat/completions`."),
        ("POST", "/openai/deployments/helixnet/chat/completions", "is at `/v1/chat/completions`."),
        ("POST", "/completions", "ends with `/v1`."),
        ("GET", "/v1beta/models", "is at `/v1/models`."),
    ],
)
def test_a_path_that_clients_mistake_gets_a_hint(
    web: Client, method: str, path: str, hint: str
) -> None:
    reply = web.open(path, method=method)
    assert (reply.status_code, reply.mimetype) == (404, "application/json")
    assert reply.json["error"]["message"].endswith(f" {hint}")


def test_a_prefix_of_our_own_api_gets_the_hint_in_its_shape(web: Client) -> None:
    """As OpenRouter's clients."""
    reply = web.post("/api/v1/chat/completions")
    assert (reply.status_code, reply.mimetype) == (404, "application/problem+json")
    assert reply.json["detail"].endswith(" OpenAI's API is at `/v1/chat/completions`.")


def test_the_description_has_no_alternative_that_accepts_nothing(web: Client) -> None:
    """Generators make a type of it, which accepts anything."""
    document = web.get("/openapi.json").json
    assert document is not None
    assert '{"not":{}}' not in json.dumps(document, separators=(",", ":"))
