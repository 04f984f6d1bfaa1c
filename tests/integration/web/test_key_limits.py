"""Limits of API keys: requests a minute, and queued jobs."""

from __future__ import annotations

import socket
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from tests.integration.web.client import ask, serving
from tests.integration.web.with_keys import code, program
from web import rate_limits


def test_a_key_has_a_limit_of_requests_a_minute(app: Any) -> None:
    alice, bob = program(app, requests_per_minute=2), program(app)
    for remaining in ("1", "0"):
        reply = alice.get("/v1/responses")
        assert reply.status_code == 200
        assert reply.headers["X-RateLimit-Limit-Requests"] == "2"
        assert reply.headers["X-RateLimit-Remaining-Requests"] == remaining
        assert "Retry-After" not in reply.headers
    refused = alice.get("/v1/responses")
    assert code(refused) == (429, "rate_limit_exceeded")
    assert refused.json["error"]["type"] == "rate_limit_error"
    assert 1 <= int(refused.headers["Retry-After"]) <= 60
    assert refused.headers["X-RateLimit-Reset-Requests"] == f"{refused.headers['Retry-After']}s"
    assert code(alice.get("/api/jobs/resp_0")) == (429, "rate_limit_exceeded")
    reply = bob.get("/v1/responses")
    assert reply.status_code == 200
    assert "X-RateLimit-Limit-Requests" not in reply.headers


def test_without_redis_requests_are_neither_limited_nor_delayed(
    tmp_path: Path, socket_folder: Path
) -> None:
    url = f"sqlite:///{tmp_path / 'jobs.sqlite3'}"
    # A Redis that accepts connections and never replies.
    silent = socket_folder / "silent.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(silent))
        listener.listen(100)
        for address in (silent, socket_folder / "nowhere.sock"):
            with closing(rate_limits.RateLimits(f"unix://{address}")) as limits:
                start = time.monotonic()
                assert [limits.hit("key", 1) for _ in range(100)] == [(True, {}, 0)] * 100
                # One of them waits. A hundred would take longer, however busy the machine is.
                assert time.monotonic() - start < 20 * rate_limits.TIMEOUT
    with serving(url, "unix:///nowhere.sock", AUTH="required") as web:
        alice = program(web.application, requests_per_minute=1)
        for _ in range(3):
            assert ask(alice)["status"] == "queued"


def test_a_key_has_a_quota_of_queued_jobs(app: Any) -> None:
    alice = program(app, max_queued=1)
    visitor = app.test_client()
    visitor.post("/login", data={"key": alice.secret})
    ask(alice)
    refused = alice.post("/v1/responses", json={"input": "Why?", "background": True})
    assert code(refused) == (429, "quota_exceeded")
    assert refused.json["error"]["type"] == "rate_limit_error"
    assert int(refused.headers["Retry-After"]) > 0
    refused = visitor.post("/", data={"question": "And now?"})
    assert refused.status_code == 429
    assert "And now?" in refused.text
