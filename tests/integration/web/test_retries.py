"""Retrying a failed job, over HTTP and from its page."""

from __future__ import annotations

from jobs.database import Database
from jobs.use_cases import stages
from tests.conftest import WORKER
from tests.integration.web.client import OUTPUT, Client, ask
from tests.integration.web.with_keys import code


def fail(database: Database, job_id: str) -> None:
    """Fail a job in its second stage."""
    for stage_index in range(2):
        claim = stages.claim(database, job_id, stage_index, WORKER, job_timeout=60)
        assert claim is not None
        if stage_index:
            assert stages.fail(database, claim, "server_error", "it broke", OUTPUT)
        else:
            assert stages.record(database, claim, OUTPUT)


def finish(database: Database, job_id: str) -> None:
    for stage_index in (1, 2):
        claim = stages.claim(database, job_id, stage_index, WORKER, job_timeout=60)
        assert claim is not None
        assert stages.record(database, claim, OUTPUT)


def test_a_failed_job_goes_on(web: Client, database: Database) -> None:
    job_id = ask(web)["id"]
    assert code(web.post(f"/api/jobs/{job_id}/retry")) == (409, "not_retriable")
    fail(database, job_id)
    failed = web.get(f"/v1/responses/{job_id}")
    assert failed.json["status"] == "failed"
    reply = web.post(f"/api/jobs/{job_id}/retry")
    assert (reply.status_code, reply.json["status"]) == (202, "in_progress")
    assert reply.location == f"/api/jobs/{job_id}"
    polled = web.get(f"/v1/responses/{job_id}")
    assert (polled.json["status"], polled.json["error"]) == ("in_progress", None)
    assert polled.headers["ETag"] != failed.headers["ETag"]
    finish(database, job_id)
    done = web.get(f"/v1/responses/{job_id}").json
    assert (done["status"], done["error"]) == ("completed", None)
    assert len(done["output"]) == 3
    events = web.get(f"/v1/responses/{job_id}?stream=true").text
    assert "response.completed" in events
    assert "response.failed" not in events
    assert code(web.post("/api/jobs/resp_none/retry")) == (404, "not_found")


def test_the_page_of_a_failed_job_has_a_button(web: Client, database: Database) -> None:
    job_id = ask(web)["id"]
    action = f'action="/jobs/{job_id}/retry"'
    assert action not in web.get(f"/jobs/{job_id}").text
    fail(database, job_id)
    assert action in web.get(f"/jobs/{job_id}").text
    reply = web.post(f"/jobs/{job_id}/retry")
    assert (reply.status_code, reply.location) == (303, f"/jobs/{job_id}")
    page = web.get(reply.location).text
    assert action not in page
    assert 'class="error"' not in page
    assert "Failed: it broke" in page, "the attempt stays in the timeline"
    assert "data-response" in page, "the page follows the job"
