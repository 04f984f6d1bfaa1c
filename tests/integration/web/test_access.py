"""API keys: who gets in, whose jobs are there, what a key allows, and logins with a browser."""

from __future__ import annotations

import itertools
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from flask.testing import FlaskClient
from openai import AuthenticationError, OpenAI
from sqlalchemy.exc import OperationalError
from werkzeug.serving import make_server

from cli import parts
from cli.client import Client
from cli.errors import ExpectedError
from jobs import settings
from jobs.database import Database
from jobs.models import ANONYMOUS, ApiKey, Scope
from jobs.use_cases import keys, queries, submission
from tests.conftest import new_database
from tests.integration.rows import QUESTION
from tests.integration.web.client import Client as WebClient
from tests.integration.web.client import ask, services_of, serving
from tests.servers import RedisServer
from web import key_cache, rate_limits, serve
from web.access import COOKIE

_names = (f"owner-{number}" for number in itertools.count())


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def app(
    request: pytest.FixtureRequest,
    redis_server: RedisServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Any]:
    """The application for all tests, with keys required since it listens beyond this machine.

    Each test has owners of its own.
    """
    url = new_database(request.param, request, tmp_path_factory.mktemp("db"))
    with serving(url, redis_server.url, HOST="0.0.0.0") as web:  # noqa: S104 (nothing is bound)
        yield web.application


class Program(FlaskClient):
    """A client that sends a key with every request."""

    key: ApiKey
    secret = ""

    def open(self, *arguments: Any, **options: Any) -> Any:
        headers = {"Authorization": f"Bearer {self.secret}", **options.pop("headers", {})}
        return super().open(*arguments, headers=headers, **options)


def new_key(app: Any, *scopes: Scope, **options: Any) -> tuple[ApiKey, str]:
    database = app.extensions["helixq"].database
    return keys.create(database, next(_names), scopes or [Scope.ASK], **options)


def program(app: Any, *scopes: Scope, **options: Any) -> Any:
    """Return a client with a new key."""
    client = Program(app, app.response_class)
    client.key, client.secret = new_key(app, *scopes, **options)
    return client


def browser(app: Any, *scopes: Scope, **options: Any) -> Any:
    """Return a client that has logged in with a new key."""
    client = app.test_client()
    _, secret = new_key(app, *scopes, **options)
    assert client.post("/login", data={"key": secret}).status_code == 303
    return client


def code(reply: Any) -> tuple[int, str]:
    body = reply.json
    return reply.status_code, body["error"]["code"] if "error" in body else body["code"]


def test_without_a_key_only_health_and_the_login_are_open(app: Any) -> None:
    web = app.test_client()
    for path in (
        "/v1/responses",
        "/v1/models",
        "/v1/responses/resp_0?stream=true",
        "/api/jobs/resp_0",
    ):
        reply = web.get(path)
        assert code(reply) == (401, "missing_api_key"), path
        assert reply.headers["WWW-Authenticate"] == 'Bearer realm="HelixQ"'
    assert code(web.post("/v1/responses", json={"input": "Why?"})) == (401, "missing_api_key")
    error = web.get("/v1/models").json["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", None)
    assert web.get("/api/jobs/resp_0").mimetype == "application/problem+json"
    for path in ("/", "/jobs", "/jobs/resp_0?a=b&c"):
        reply = web.get(path)
        assert reply.status_code == 303
        page = web.get(reply.headers["Location"])
        assert f'value="{path.replace("&", "&amp;")}"' in page.text
    assert web.post("/", data={"question": "Why?"}).headers["Location"] == "/login"
    assert web.get("/healthz").status_code == 200
    assert web.get("/readyz").status_code == 503, (
        "no worker is there, and no key is needed to see it"
    )
    with web.get("/assets/helixq.css") as file:
        assert file.status_code == 200
    assert web.get("/v1/nothing").status_code == 404


def test_a_wrong_key_is_refused(app: Any) -> None:
    web, alice = app.test_client(), program(app)
    assert alice.get("/v1/models").status_code == 200
    for header in (f"bearer {alice.secret}", f"BEARER  {alice.secret} "):
        assert web.get("/v1/models", headers={"Authorization": header}).status_code == 200
    for header in (
        "Bearer",
        f"Bearer {alice.secret}x",
        "Bearer hq_\xff",
        "Bearer a=b",
        "Bearer none",
    ):
        for path in ("/v1/models", "/api/jobs/resp_0"):
            reply = web.get(path, headers={"Authorization": header})
            assert code(reply) == (401, "invalid_api_key"), header
            assert 'error="invalid_token"' in reply.headers["WWW-Authenticate"]
    basic = web.get("/v1/models", headers={"Authorization": "Basic YTpi"})
    assert code(basic) == (401, "missing_api_key"), "it is a proxy's"


def test_jobs_of_another_owner_are_not_found(app: Any) -> None:
    alice, bob = program(app), program(app)
    again = program(app, owner=alice.key.owner)
    visitor = browser(app, owner=bob.key.owner)
    job_id, other_id = ask(alice)["id"], ask(bob)["id"]
    history = again.get(f"/api/jobs/{job_id}").json
    assert (history["owner"], history["key"]) == (alice.key.owner, alice.key.id)
    for web in (bob, visitor):
        for path in (
            f"/v1/responses/{job_id}",
            f"/v1/responses/{job_id}?stream=true",
            f"/v1/responses/{job_id}/input_items",
            f"/v1/responses?after={job_id}",
            f"/api/jobs/{job_id}",
            f"/jobs/{job_id}",
            f"/jobs?after={job_id}",
        ):
            assert web.get(path).status_code == 404, path
        for path in (f"/v1/responses/{job_id}/cancel", f"/jobs/{job_id}/cancel"):
            assert web.post(path).status_code == 404, path
        assert web.delete(f"/v1/responses/{job_id}").status_code == 404
        continued = {"input": "How?", "context": "turns", "previous_response_id": job_id}
        reply = web.post("/v1/responses", json={**continued, "background": True})
        assert code(reply) == (400, "previous_response_not_found")
        assert [job["id"] for job in web.get("/v1/responses").json["data"]] == [other_id]
        assert job_id not in web.get("/jobs").text
    assert [job["id"] for job in again.get("/v1/responses").json["data"]] == [job_id]
    assert again.get(f"/v1/responses/{job_id}").json["status"] == "queued"

    def keyed(web: Any, text: str) -> Any:
        body = {"input": text, "background": True}
        return web.post("/v1/responses", json=body, headers={"Idempotency-Key": "k"})

    assert keyed(alice, "Why?").json["id"] != keyed(bob, "How?").json["id"]
    assert keyed(again, "Why?").json["id"] == keyed(alice, "Why?").json["id"]
    assert code(keyed(again, "How?")) == (422, "idempotency_key_reused")


def test_audit_reads_the_histories_of_all_owners(app: Any) -> None:
    alice = program(app)
    job_id = ask(alice, input="Who audits?")["id"]
    auditor, visitor = program(app, Scope.AUDIT), browser(app, Scope.AUDIT)
    for web in (auditor, visitor):
        assert web.get(f"/api/jobs/{job_id}").json["owner"] == alice.key.owner
        page = web.get(f"/jobs/{job_id}").text
        assert alice.key.owner in page
        assert "Cancel" not in page
        assert "Who audits?" in web.get("/jobs").text
        assert web.get("/").headers["Location"] == "/jobs"
        assert web.post("/", data={"question": "Why?"}).status_code == 403
        for path in ("/v1/responses", f"/v1/responses/{job_id}/cancel"):
            reply = web.post(path, json={"input": "Why?"})
            assert code(reply) == (403, "insufficient_scope")
            assert "`ask`" in reply.json["error"]["message"]
            assert 'scope="ask"' in reply.headers["WWW-Authenticate"]
    assert code(auditor.get(f"/v1/responses/{job_id}")) == (403, "insufficient_scope")
    # A page that is open shows the texts of a running job.
    assert visitor.get(f"/v1/responses/{job_id}").json["id"] == job_id
    both = program(app, Scope.ASK, Scope.AUDIT)
    assert both.get(f"/v1/responses/{job_id}").status_code == 404
    assert both.post(f"/v1/responses/{job_id}/cancel").status_code == 404
    assert both.get(f"/api/jobs/{job_id}").status_code == 200


def test_admin_may_do_everything(app: Any) -> None:
    job_id = ask(program(app))["id"]
    admin, visitor = program(app, Scope.ADMIN), browser(app, Scope.ADMIN)
    assert admin.get(f"/v1/responses/{job_id}").status_code == 200
    assert admin.get("/v1/responses").json["data"] == [], "the list has one's own"
    assert "Cancel" in visitor.get(f"/jobs/{job_id}").text
    assert admin.post(f"/v1/responses/{job_id}/cancel").json["status"] == "cancelled"
    assert visitor.post("/", data={"question": "Why?"}).status_code == 303
    database = app.extensions["helixq"].database
    before, _ = submission.submit(database, ANONYMOUS, QUESTION, max_queued=1000)
    assert admin.get(f"/api/jobs/{before.id}").json["key"] is None, "from before keys were required"


def test_a_browser_logs_in_and_out(app: Any) -> None:
    web = app.test_client()
    refused = web.post("/login", data={"key": "hq_wrong", "next": "/jobs?after=x"})
    assert refused.status_code == 401
    assert "wrong, or it was revoked" in refused.text
    assert 'value="/jobs?after=x"' in refused.text
    key, secret = new_key(app)
    reply = web.post("/login", data={"key": f" {secret}\n", "next": "/jobs?after=x"})
    assert (reply.status_code, reply.headers["Location"]) == (303, "/jobs?after=x")
    cookie = reply.headers["Set-Cookie"]
    assert {"HttpOnly", "SameSite=Lax", "Path=/"} <= set(cookie.split("; "))
    assert "Secure" not in cookie
    assert secret not in cookie
    page = web.get("/")
    assert key.name in page.text
    assert page.headers["Cache-Control"] == "private, no-cache"
    assert web.post("/", data={"question": "Why?"}).status_code == 303
    # The cookie does not help a page of another site.
    for path, data in (("/", {"question": "Why?"}), ("/login", {"key": secret}), ("/logout", {})):
        reply = web.post(path, data=data, headers={"Origin": "https://evil.example"})
        assert reply.status_code == 403
    stolen = web.get_cookie(COOKIE)
    assert web.post("/logout").headers["Location"] == "/login"
    assert web.get_cookie(COOKIE) is None
    web.set_cookie(COOKIE, stolen.value)
    assert web.get("/jobs").status_code == 303, "the session itself has ended"


def test_a_login_redirects_to_own_paths_only(app: Any) -> None:
    _, secret = new_key(app)
    for target in (
        "https://evil.example",
        "//evil.example",
        "/\\evil.example",
        "/\t/evil.example",
        "javascript:alert(1)",
        "jobs",
        "",
        "/jobs\r\nSet-Cookie: a=b",
    ):
        reply = app.test_client().post("/login", data={"key": secret, "next": target})
        assert reply.headers["Location"] == "/", target


def test_a_login_over_tls_sets_a_secure_cookie(app: Any) -> None:
    _, secret = new_key(app)
    headers = {"Host": "helixq.example", "Origin": "https://helixq.example"}
    reply = app.test_client().post("/login", data={"key": secret}, headers=headers)
    assert "Secure" in reply.headers["Set-Cookie"].split("; ")


def test_keys_are_cached_and_revoked_within_seconds(
    app: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, visitor = program(app), browser(app)
    job_id = ask(alice)["id"]
    assert visitor.get("/jobs").status_code == 200
    with monkeypatch.context() as patch:
        for name in ("find", "find_by_session"):
            patch.setattr(keys, name, Mock(side_effect=AssertionError, __name__=name))
        assert alice.get(f"/v1/responses/{job_id}").status_code == 200
        assert visitor.get("/jobs").status_code == 200
    for thread in threading.enumerate():
        if thread.name == key_cache.THREAD:
            thread.join()
    database = app.extensions["helixq"].database
    used = {key.id for key, _ in keys.list_keys(database) if key.last_used_at is not None}
    assert alice.key.id in used

    events = alice.get(f"/v1/responses/{job_id}?stream=true").iter_encoded()
    assert b"response.created" in next(events)
    monkeypatch.setattr(key_cache, "TTL", 0)
    monkeypatch.setattr(app.extensions["helixq"].keys, "_entries", {})
    keys.revoke(database, alice.key.id)
    assert code(alice.get(f"/v1/responses/{job_id}")) == (401, "invalid_api_key")
    assert b"response.completed" not in b"".join(events), "the stream ends, and not with the job"
    assert queries.get_job(database, alice.key.owner, job_id).finished_at is None


def test_without_the_database_a_key_gets_503(app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    alice = program(app)
    away = OperationalError("", {}, Exception("away"))
    monkeypatch.setattr(keys, "find", Mock(side_effect=away, __name__="find"))
    assert code(alice.get("/v1/models")) == (503, "unavailable")


def test_clients_send_their_keys(app: Any) -> None:
    _, secret = new_key(app)
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    with OpenAI(base_url=f"{url}/v1", api_key=secret, max_retries=0) as openai:
        assert openai.responses.create(input="Why?", background=True).status == "queued"
    with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as openai:
        with pytest.raises(AuthenticationError) as caught:
            openai.models.list()
        assert caught.value.code == "invalid_api_key"
    with Client(url, secret) as ours:
        job_id = ours.submit({"input": "Why?"})
        ours.cancel(job_id)
        assert [event["type"] for event in ours.events(job_id)][-1] == "response.incomplete"
    with Client(url) as ours, pytest.raises(ExpectedError, match="Set HELIXQ_API_KEY"):
        ours.submit({"input": "Why?"})
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_start_without_keys_says_how_to_make_one(
    redis_server: RedisServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    served = Mock()
    monkeypatch.setattr(serve, "serve", served)
    given = settings.load(
        {
            "HELIXQ_DATA_DIR": str(tmp_path),
            "HELIXQ_REDIS_URL": redis_server.url,
            "HELIXQ_AUTH": "required",
        }
    )
    parts.migrate(given, "head")
    parts.web(given)
    assert "`helixq keys create`" in caplog.text
    caplog.clear()
    database = Database(given.database)
    keys.create(database, "k", [Scope.ASK])
    database.close()
    parts.web(given)
    assert "helixq keys" not in caplog.text
    assert served.call_count == 2


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
            limits = rate_limits.RateLimits(f"unix://{address}")
            start = time.monotonic()
            assert [limits.hit("key", 1) for _ in range(100)] == [(True, {}, 0)] * 100
            assert time.monotonic() - start < 2 * rate_limits.TIMEOUT + 0.5, "one of them waits"
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


def test_without_required_keys_the_header_is_ignored(web: WebClient) -> None:
    job_id = ask(web)["id"]
    reply = web.get(f"/v1/responses/{job_id}", headers={"Authorization": "Bearer none"})
    assert reply.status_code == 200
    history = web.get(f"/api/jobs/{job_id}").json
    assert (history["owner"], history["key"]) == (ANONYMOUS, None)
    foreign, _ = submission.submit(services_of(web).database, "other", QUESTION, max_queued=10)
    assert web.get(f"/api/jobs/{foreign.id}").status_code == 404
    assert web.get("/login").headers["Location"] == "/"
    page = web.get(f"/jobs/{job_id}").text
    assert "Log out" not in page
    assert "Owner" not in page
