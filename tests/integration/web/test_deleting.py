"""Deleting jobs."""

from __future__ import annotations

from jobs.database import Database
from jobs.use_cases import stages
from tests.conftest import WORKER
from tests.integration.web.client import OUTPUT, Client, ask, finish


def test_a_deleted_job_is_gone_with_its_history(web: Client, database: Database) -> None:
    job_id, other = ask(web)["id"], ask(web)["id"]
    finish(database, job_id)
    reply = web.delete(f"/v1/responses/{job_id}")
    assert (reply.status_code, reply.json) == (
        200,
        {"id": job_id, "object": "response", "deleted": True},
    )
    for path in (f"/v1/responses/{job_id}", f"/api/jobs/{job_id}", f"/jobs/{job_id}"):
        assert web.get(path).status_code == 404
    assert [job["id"] for job in web.get("/v1/responses").json["data"]] == [other]
    assert web.delete(f"/v1/responses/{job_id}").status_code == 404


def test_a_running_job_can_be_deleted_and_its_worker_records_nothing(
    web: Client, database: Database
) -> None:
    job_id = ask(web)["id"]
    claim = stages.claim(database, job_id, 0, WORKER, job_timeout=60)
    assert claim is not None
    assert web.delete(f"/v1/responses/{job_id}").status_code == 200
    assert not stages.record(database, claim, OUTPUT)
    stages.keep_partial(database, claim, OUTPUT)
    assert web.get(f"/v1/responses/{job_id}").status_code == 404


def test_a_deleted_jobs_idempotency_key_is_free(web: Client) -> None:
    first = ask(web, idempotency_key="k")
    assert ask(web, idempotency_key="k")["id"] == first["id"]
    web.delete(f"/v1/responses/{first['id']}")
    assert ask(web, idempotency_key="k")["id"] != first["id"]
