"""Batches with OpenAI's client, a real server and both databases."""

from __future__ import annotations

import json
from typing import Any

import pytest
import sqlalchemy as sa
from openai import BadRequestError, NotFoundError

from jobs.database_clock import utcnow
from jobs.models import ANONYMOUS, Batch, BatchLine
from jobs.page_request import PageRequest
from jobs.use_cases import batches, deliveries, queries, webhooks
from jobs.webhooks.events import EVENT_TYPES
from tests.integration.batch_api.service import CHAT, RESPONSES, BatchService, line, lines
from tests.integration.web.client import OUTPUT


@pytest.mark.parametrize("endpoint", [RESPONSES, CHAT])
def test_a_batch_is_answered_line_by_line(service: BatchService, endpoint: str) -> None:
    content = "".join(line(f"q-{n}", endpoint, metadata={"n": str(n)}) for n in range(20))
    batch_id = service.create(content, endpoint, metadata={"team": "blue"})
    assert service.validate(batch_id).status == "in_progress"
    batch = service.complete(batch_id)
    assert (batch.status, batch.metadata, batch.error_file_id) == (
        "completed",
        {"team": "blue"},
        None,
    )
    assert batch.request_counts is not None
    assert batch.usage is not None
    assert (batch.request_counts.total, batch.request_counts.completed) == (20, 20)
    assert batch.usage.input_tokens == 20 * 3 * (OUTPUT.prompt_tokens or 0)
    assert batch.created_at <= batch.in_progress_at <= batch.finalizing_at <= batch.completed_at  # type: ignore[operator]  # all are set
    answers = service.lines(batch.output_file_id)
    assert set(answers) == {f"q-{n}" for n in range(20)}
    for number in range(20):
        answer = answers[f"q-{number}"]
        assert (answer["error"], answer["response"]["status_code"]) == (None, 200)
        body, job_id = answer["response"]["body"], answer["response"]["request_id"]
        single = service.client.get(f"/responses/{job_id}", cast_to=object)
        if endpoint == RESPONSES:
            assert body == single
        else:
            assert body["choices"][0]["message"]["content"] == OUTPUT.text
        assert body["metadata"] == {"n": str(number)}, "the user's"
    job = queries.get_job(service.database, ANONYMOUS, job_id)
    assert (job.batch_id, job.custom_id, job.priority) == (batch_id, "q-19", 0)
    output = service.client.files.retrieve(batch.output_file_id or "")
    assert (output.purpose, output.expires_at) == ("batch_output", None)
    assert service.count(BatchLine) == 0


def test_batches_are_listed_in_pages_by_age(service: BatchService) -> None:
    ids = [service.create(lines(1)) for _ in range(5)]
    page = service.client.batches.list(limit=2)
    assert [batch.id for batch in page.data] == [ids[4], ids[3]]
    assert page.has_more
    assert [batch.id for batch in service.client.batches.list(limit=2)] == ids[::-1]
    oldest = service.client.batches.list(limit=2, extra_query={"order": "asc"})
    assert [batch.id for batch in oldest.data] == ids[:2]
    rest = service.client.batches.list(limit=9, after=ids[1], extra_query={"order": "asc"})
    assert [batch.id for batch in rest.data] == ids[2:]
    with pytest.raises(BadRequestError, match="no page after 'batch_0'"):
        service.client.batches.list(after="batch_0")
    with pytest.raises(NotFoundError):
        service.client.batches.cancel("batch_0")


def test_webhooks_tell_how_batches_and_their_jobs_ended(service: BatchService) -> None:
    endpoint = webhooks.create(
        service.database,
        ANONYMOUS,
        url="https://example.com/hook",
        name="all",
        event_types=EVENT_TYPES,
        allowed=(),
    )

    def told() -> list[tuple[str, str]]:
        page, _ = deliveries.list_deliveries(
            service.database, ANONYMOUS, endpoint.id, PageRequest(100, newest_first=False)
        )
        return [(delivery.event_type, delivery.object_id) for delivery in page]

    cancelled = service.create(lines(2))
    service.validate(cancelled)
    service.runner.run()
    jobs = service.queued(cancelled)
    service.client.batches.cancel(cancelled)
    assert sorted(told()) == sorted(("response.cancelled", job_id) for job_id in jobs)
    service.complete(cancelled)
    assert told()[2:] == [("batch.cancelled", cancelled)]
    failed = service.create("{}\n")
    assert service.validate(failed).status == "failed"
    assert told()[3:] == [("batch.failed", failed)]
    with service.database.write() as connection:
        connection.execute(sa.update(Batch).values(ended_at=utcnow(-3 * 86_400)))
    assert batches.delete_batches(service.database, 2) == 2
    assert {event_type for event_type, _ in told()} == {"response.cancelled"}


def test_the_history_of_a_line_names_its_batch(service: BatchService) -> None:
    batch_id = service.create(line("my line"))
    service.validate(batch_id)
    service.runner.run()
    [job_id] = service.queued(batch_id)
    root = str(service.client.base_url).removesuffix("/v1/")
    history: Any = service.client.get(f"{root}/api/jobs/{job_id}", cast_to=object)
    assert history["batch"] == {"id": batch_id, "custom_id": "my line"}
    page = service.client.get(f"{root}/jobs/{job_id}", cast_to=str)
    assert batch_id in page
    assert "my line" in page
    assert json.loads(service.client.responses.retrieve(job_id).to_json())["metadata"] == {}
