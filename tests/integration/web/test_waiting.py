"""Requests that wait for jobs."""

from __future__ import annotations

from contextlib import ExitStack

from jobs.database import Database
from jobs.models import ANONYMOUS
from jobs.page_request import PageRequest
from jobs.use_cases import cancellation, queries
from tests.integration.web.client import Client, ask, services_of
from web.waiting import MAX_WAITING


def test_too_many_waiting_requests_are_refused(web: Client, database: Database) -> None:
    services = services_of(web)
    job_id = ask(web)["id"]
    with ExitStack() as stack:
        for _ in range(MAX_WAITING):
            stack.enter_context(services.waiter.slot())
        for reply in (
            web.post("/v1/responses", json={"input": "Why?"}),
            web.get(f"/v1/responses/{job_id}?stream=true"),
            web.get(f"/v1/responses/{job_id}", headers={"Prefer": "wait=5"}),
        ):
            assert (reply.status_code, reply.json["error"]["code"]) == (503, "too_many_waiting")
        ask(web)
    assert len(queries.list_jobs(database, ANONYMOUS, PageRequest(10))[0]) == 2
    cancellation.cancel(database, ANONYMOUS, job_id)
    for _ in range(3):  # streams free their slot
        assert web.get(f"/v1/responses/{job_id}?stream=true").text
    with ExitStack() as stack:
        for _ in range(MAX_WAITING):
            stack.enter_context(services.waiter.slot())


def test_a_server_that_stops_leaves_the_job_to_be_polled(web: Client, database: Database) -> None:
    services = services_of(web)
    services.waiter.stopping = lambda: True
    reply = web.post("/v1/responses", json={"input": "Why?"})
    assert (reply.status_code, reply.json["status"]) == (202, "queued")
    assert reply.headers["Location"].endswith(
        queries.list_jobs(database, ANONYMOUS, PageRequest(1))[0][0].id
    )
