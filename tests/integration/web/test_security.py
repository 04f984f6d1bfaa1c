"""Protection against other sites where no keys are required; for every route, see `test_every_route`."""

from __future__ import annotations

from jobs.database import Database
from jobs.models import ANONYMOUS
from jobs.use_cases import queries
from tests.integration.web.client import Client


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
    assert queries.list_jobs(database, ANONYMOUS, limit=1) == ([], False)
