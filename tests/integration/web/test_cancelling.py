"""Cancelling a job."""

from __future__ import annotations

from jobs.database import Database
from jobs.use_cases import stages
from tests.conftest import WORKER
from tests.integration.web.client import OUTPUT, Client, ask


def test_cancel_is_final_and_may_be_repeated(web: Client) -> None:
    job_id = ask(web)["id"]
    for _ in range(2):
        reply = web.post(f"/v1/responses/{job_id}/cancel")
        assert (reply.status_code, reply.json["status"]) == (200, "cancelled")
    assert web.post("/v1/responses/resp_none/cancel").status_code == 404


def test_a_cancelled_attempt_is_running_until_it_stops(web: Client, database: Database) -> None:
    job_id = ask(web)["id"]
    claim = stages.claim(database, job_id, 0, WORKER, job_timeout=60)
    assert claim is not None
    web.post(f"/v1/responses/{job_id}/cancel")
    history = web.get(f"/api/jobs/{job_id}").json
    assert (history["status"], history["attempts"][0]["status"]) == ("cancelled", "running")
    page = web.get(f"/jobs/{job_id}").text
    assert "stopping" in page
    assert "data-response" in page, "the page waits for the text"
    stages.keep_partial(database, claim, OUTPUT)
    history = web.get(f"/api/jobs/{job_id}").json
    assert (history["status"], history["attempts"][0]["status"]) == ("cancelled", "cancelled")
    page = web.get(f"/jobs/{job_id}").text
    assert OUTPUT.text in page
    assert "data-response" not in page
