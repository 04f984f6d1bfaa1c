"""API keys: who gets in, whose jobs are there, and what a key allows."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from openai import AuthenticationError, OpenAI
from werkzeug.serving import make_server

from cli import parts
from cli.client import Client
from cli.errors import ExpectedError
from jobs import settings
from jobs.database import Database
from jobs.models import ANONYMOUS, Scope
from jobs.use_cases import exporting, keys, submission
from tests.integration.rows import QUESTION
from tests.integration.web.client import Client as WebClient
from tests.integration.web.client import ask, services_of
from tests.integration.web.exports import lines
from tests.integration.web.with_keys import browser, code, new_key, program
from tests.joining import shut_down
from tests.servers import RedisServer
from web import key_cache, serve


def test_without_a_key_pages_lead_to_the_login_and_the_rest_says_so(app: Any) -> None:
    web = app.test_client()
    for path in ("/v1/responses/resp_0?stream=true", "/api/jobs/resp_0"):
        assert code(web.get(path)) == (401, "missing_api_key"), path
    error = web.get("/v1/models").json["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", None)
    assert web.get("/api/jobs/resp_0").mimetype == "application/problem+json"
    assert "queued" in browser(app).get("/jobs").text.split("<footer>")[1]
    for path in ("/", "/jobs", "/jobs/resp_0?a=b&c", "/review", "/system"):
        reply = web.get(path)
        assert reply.status_code == 303
        page = web.get(reply.headers["Location"])
        assert f'value="{path.replace("&", "&amp;")}"' in page.text
        assert "<footer>" not in page.text, "it is for those who have logged in"
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


def test_lists_and_idempotency_keys_are_an_owners(app: Any) -> None:
    """What each route does with the id of somebody else's thing is in `test_every_route`."""
    alice, bob = program(app), program(app)
    again = program(app, owner=alice.key.owner)
    visitor = browser(app, owner=bob.key.owner)
    job_id, other_id = ask(alice)["id"], ask(bob)["id"]
    history = again.get(f"/api/jobs/{job_id}").json
    assert (history["owner"], history["key"]) == (alice.key.owner, alice.key.id)
    for web in (bob, visitor):
        assert web.get(f"/v1/responses/{job_id}?stream=true").status_code == 404
        for left, right in ((job_id, other_id), (other_id, job_id)):
            assert web.get(f"/compare?left={left}&right={right}").status_code == 404
        assert [job["id"] for job in web.get("/v1/responses").json["data"]] == [other_id]
        assert job_id not in web.get("/jobs").text
        for kind in ("unreviewed", "disagreements"):
            assert job_id not in web.get(f"/review?kind={kind}").text
        assert "/system" not in web.get("/jobs").text
        for path in ("/v1/files", "/v1/batches", "/v1/webhook_endpoints"):
            assert web.get(path).json["data"] == []
    assert [job["id"] for job in again.get("/v1/responses").json["data"]] == [job_id]
    assert program(app, Scope.ADMIN).get("/v1/responses").json["data"] == []

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
        assert web.post(f"/jobs/{job_id}/replay").status_code == 403
        for path in (f"/jobs/{job_id}/review", f"/review/{job_id}"):
            assert web.post(path, data={"critique": "1"}).status_code == 409
        assert web.get("/review").status_code == 200
        assert alice.key.owner in web.get("/system").text
        assert web.post("/system/deliveries/whd_0/redeliver").status_code == 403
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


def test_clients_send_their_keys(app: Any) -> None:
    _, secret = new_key(app)
    server: Any = make_server("127.0.0.1", 0, app, threaded=True)
    server.daemon_threads = False  # closing waits for the requests that still run
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
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
    with (
        Client(url) as ours,
        pytest.raises(ExpectedError, match=r"^No API key was given\. Set HELIXQ_API_KEY to a key"),
    ):
        ours.submit({"input": "Why?"})
    shut_down(server, thread)


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


def test_without_required_keys_the_header_is_ignored(web: WebClient) -> None:
    job_id = ask(web)["id"]
    reply = web.get(f"/v1/responses/{job_id}", headers={"Authorization": "Bearer none"})
    assert reply.status_code == 200
    history = web.get(f"/api/jobs/{job_id}").json
    assert (history["owner"], history["key"]) == (ANONYMOUS, None)
    assert web.get("/login").headers["Location"] == "/"
    page = web.get(f"/jobs/{job_id}").text
    assert "Log out" not in page
    assert "Owner" not in page + web.get("/jobs").text


def test_without_required_keys_the_jobs_of_all_owners_are_there(web: WebClient) -> None:
    own = ask(web)["id"]
    foreign, _ = submission.submit(services_of(web).database, "other", QUESTION, max_queued=10)
    assert [row["id"] for row in lines(web)] == [own, foreign.id]
    assert [job["owner"] for job in web.get("/api/jobs").json["data"]] == ["other", ANONYMOUS]
    assert web.get(f"/v1/responses/{foreign.id}").json["status"] == "queued"
    pages = ("/jobs", f"/jobs/{foreign.id}", "/system", f"/review?job={foreign.id}")
    for path in pages:
        assert "other" in web.get(path).text, path
    assert "<td class=owner>other" in web.get("/jobs").text
    assert web.post(f"/v1/responses/{foreign.id}/cancel").json["status"] == "cancelled"
    assert web.delete(f"/v1/responses/{foreign.id}").json["deleted"]
    assert [job["id"] for job in web.get("/v1/responses").json["data"]] == [own]


def test_a_list_is_filtered_by_owner_and_key(app: Any) -> None:
    one = program(app)
    other, auditor = program(app, owner=one.key.owner), program(app, Scope.AUDIT)
    ids = [ask(client)["id"] for client in (one, other)]
    page = one.get("/jobs").text
    assert 'name="owner"' not in page
    assert 'name="key"' in page
    for reader in (one, auditor):
        listed = reader.get(f"/api/jobs?key={one.key.id}").json["data"]
        assert [(job["id"], job["key"]) for job in listed] == [(ids[0], one.key.id)]
    assert one.get(f"/api/jobs?key={auditor.key.id}").json["data"] == []
    form = auditor.get(f"/jobs?owner={one.key.owner}").text
    assert f'name="owner" value="{one.key.owner}"' in form
    assert all(job_id in form for job_id in ids)
    page = auditor.get(f"/jobs/{ids[1]}").text
    assert f'<a href="/jobs?owner={one.key.owner}">' in page
    assert f'<a href="/jobs?key={other.key.id}">' in page
    assert f'<a href="/jobs?owner={one.key.owner}">' not in one.get(f"/jobs/{ids[1]}").text


def test_an_owner_exports_its_own_jobs_and_an_auditor_all(app: Any) -> None:
    mine, other = program(app), program(app)
    asked = [ask(client)["id"] for client in (mine, other)]
    assert [row["id"] for row in lines(mine)] == asked[:1]
    assert lines(mine, f"owner={other.key.owner}") == []
    auditor = program(app, Scope.AUDIT)
    assert {row["id"] for row in lines(auditor)} >= set(asked)
    assert [row["id"] for row in lines(auditor, f"owner={other.key.owner}")] == asked[1:]
    reply = app.test_client().get("/api/jobs/export")
    assert (reply.status_code, reply.mimetype) == (401, "application/problem+json")


def test_an_export_ends_when_its_key_is_revoked(app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_cache, "TTL", 0.0)
    monkeypatch.setattr(exporting.pages, "__kwdefaults__", {"with_proofs": False, "size": 1})
    client = program(app)
    ask(client), ask(client)
    reply = client.get("/api/jobs/export", buffered=False)  # The first page is made.
    keys.revoke(app.extensions["helixq"].database, client.key.id)
    with pytest.raises(ConnectionAbortedError):
        _ = reply.data
