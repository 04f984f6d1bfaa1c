"""Listing jobs."""

from __future__ import annotations

import datetime as dt

import pytest
import sqlalchemy as sa

from jobs.database import Database
from jobs.page_request import PageRequest
from jobs.use_cases import queries
from tests.integration.web.client import OUTPUT, Client, ask, finish


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


@pytest.mark.parametrize(
    "path",
    [
        "/v1/responses",
        "/v1/responses/{id}/input_items",
        "/v1/chat/completions/{id}/messages",
        "/v1/files",
        "/v1/batches",
        "/v1/webhook_endpoints",
        "/api/jobs",
    ],
)
def test_a_page_after_what_is_not_there_is_refused_by_name(web: Client, path: str) -> None:
    job_id = ask(web)["id"]
    for after in ("resp_none", "x", "%00"):
        reply = web.get(f"{path.format(id=job_id)}?after={after}")
        error = reply.json.get("error", reply.json)
        assert (reply.status_code, error["code"]) == (400, "invalid_cursor")
        assert error["param"] == "after"
        assert error.get("message", error.get("detail")).startswith("There is no page after ")


def test_the_list_does_not_read_prompts(web: Client, database: Database) -> None:
    job_id = ask(web)["id"]
    finish(database, job_id)
    [job], _ = queries.list_jobs(database, None, PageRequest(1), with_attempts=True)
    assert [attempt.output for attempt in job.attempts] == [OUTPUT.text] * 3
    for attempt in job.attempts:
        assert {"prompt", "delta_lengths"} <= sa.inspect(attempt).unloaded
    assert len(web.get("/v1/responses").json["data"][0]["output"]) == 3


def test_the_list_can_be_filtered_by_status_and_time(web: Client, database: Database) -> None:
    done, open_job = ask(web), ask(web)
    finish(database, done["id"])

    def ids(query: str) -> list[str]:
        return [job["id"] for job in web.get(f"/v1/responses?{query}").json["data"]]

    assert ids("status=completed") == [done["id"]]
    assert ids("status=queued") == [open_job["id"]]
    assert ids("status=failed") == []
    created = done["created_at"]
    both = [open_job["id"], done["id"]]
    assert ids(f"since={created}") == both
    assert ids(f"until={created}") == []
    assert ids(f"since={created + 60}") == []
    later = dt.datetime.fromtimestamp(created + 60, dt.UTC).isoformat().replace("+", "%2B")
    assert ids(f"until={later}&status=completed") == [done["id"]]
    # RFC 3339 has small letters too, and not every client escapes the plus sign of an offset.
    for written in (later.replace("T", "t"), later.replace("%2B", "+"), f"{created + 60}.5"):
        assert ids(f"until={written}&status=completed") == [done["id"]]
        assert ids(f"since={written}") == []
    utc = later.replace("%2B00:00", "z").replace("T", "t")
    assert ids(f"until={utc}&status=completed") == [done["id"]]
    for query in (
        "since=2026-01-02&until=2026-01-01",
        "status=odd",
        "since=yesterday",
        "until=99999999999999",
        "since=-1",
    ):
        error = web.get(f"/v1/responses?{query}").json["error"]
        assert (error["code"], error["param"]) == ("invalid_value", query.partition("=")[0])
