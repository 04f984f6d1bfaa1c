"""Protection against other sites where no keys are required; for every route, see `test_every_route`."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from jobs.database import Database
from jobs.models import ANONYMOUS
from jobs.page_request import PageRequest
from jobs.use_cases import queries
from tests.integration.web.client import Client, ask, serving
from tests.servers import RedisServer


def test_a_server_of_this_machine_has_no_other_name(web: Client, database: Database) -> None:
    """A site can make its name resolve to this machine (DNS rebinding)."""
    assert (
        web.post("/", data={"question": "Why?"}, headers={"Origin": "http://[bad"}).status_code
        == 403
    )
    for path in ("/", "/v1/models", "/api/jobs/resp_0", "/log/checkpoint", "/healthz", "/none"):
        for host in ("evil.example", "localhost.evil.example", "127.0.0.1@evil.example", "[::1"):
            reply = web.get(path, headers={"Host": host})
            assert reply.status_code == 400
            assert "evil" not in reply.text
    for host in ("localhost", "127.0.0.1:8000", "[::1]:8000"):
        assert web.get("/", headers={"Host": host}).status_code == 200
    assert queries.list_jobs(database, ANONYMOUS, PageRequest(1)) == ([], False)


def test_a_server_with_keys_may_have_any_name(redis_server: RedisServer, tmp_path: Path) -> None:
    """A proxy on the same machine passes its own name on. Where keys are required, a name alone is of no use."""
    url = f"sqlite:///{tmp_path / 'jobs.sqlite3'}"
    with serving(url, redis_server.url, AUTH="required") as web:
        headers = {"Host": "helixq.example"}
        assert web.get("/healthz", headers=headers).status_code == 200
        assert web.get("/", headers=headers).headers["Location"] == "/login?next=/"
        assert web.get("/v1/models", headers=headers).status_code == 401


#: Those that cannot be the name of a host, and so cannot be routed.
ODD_HOSTS = ("a..b", ".127.0.0.1", "x" * 64, "a/b", "[", "127.0.0.1:x")


@pytest.mark.parametrize("listens", ["127.0.0.1", "0.0.0.0"])  # noqa: S104 (nothing is bound)
def test_a_host_that_is_none_is_no_bug(
    redis_server: RedisServer, tmp_path: Path, listens: str
) -> None:
    url = f"sqlite:///{tmp_path / 'jobs.sqlite3'}"
    expected = (400,) if listens == "127.0.0.1" else (200, 400, 404)
    with serving(url, redis_server.url, HOST=listens, AUTH="off") as web:
        web.application.config["PROPAGATE_EXCEPTIONS"] = False
        for host in ODD_HOSTS:
            for path in ("/jobs", "/none", "/v1/responses", "/api/jobs", "/healthz", "/log/none"):
                reply = web.get(path, headers={"Host": host})
                assert reply.status_code in expected, (host, path)


def test_redirects_and_links_do_not_follow_the_host(web: Client) -> None:
    job_id = ask(web)["id"]
    headers = {"Host": "localhost:666", "X-Forwarded-Host": "evil.example"}
    asked = web.post("/", data={"question": "Why?"}, headers=headers)
    for reply in (
        asked,
        web.post(f"/jobs/{job_id}/cancel", headers=headers),
        web.post("/api/jobs/{job_id}/replay", headers=headers),
        web.post("/v1/responses", json={"input": "Why?", "background": True}, headers=headers),
        web.get("/api/jobs?limit=1", headers=headers),
        web.get(f"/jobs/{job_id}", headers=headers),
        web.get("/none", headers=headers),
    ):
        assert "evil" not in reply.text
        assert reply.headers.get("Location", "/").startswith("/")
        assert not reply.headers.get("Location", "/").startswith("//")


def test_file_names_inject_no_header(web: Client) -> None:
    name = 'a"; filename=b\r\nSet-Cookie: c=d\r\n\r\n\u202eä/../x'
    form = {"purpose": "batch", "file": (io.BytesIO(b"{}\n"), name)}
    made = web.post("/v1/files", data=form, content_type="multipart/form-data").json
    reply = web.get(f"/v1/files/{made['id']}/content")
    assert "Set-Cookie" not in reply.headers
    disposition = reply.headers["Content-Disposition"]
    assert disposition.startswith("attachment; filename")
    assert disposition.isprintable()
    disposition.encode("latin-1")  # as the server does
    assert reply.mimetype == "application/octet-stream"
