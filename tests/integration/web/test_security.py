"""Protection against other sites."""

from __future__ import annotations

from jobs.database import Database
from jobs.models import ANONYMOUS
from jobs.use_cases import queries
from tests.integration.web.client import Client


def test_cross_site_submissions_are_refused(web: Client, database: Database) -> None:
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
    assert queries.list_jobs(database, ANONYMOUS, limit=1) == ([], False)


def test_pages_load_no_code_from_other_sites(web: Client) -> None:
    reply = web.get("/")
    assert "default-src 'none'" in reply.headers["Content-Security-Policy"]
    assert "<script>" not in reply.text
    assert " style=" not in reply.text
