"""Which events are told to whom, whatever ends a job."""

from __future__ import annotations

from dataclasses import replace

import pytest
import sqlalchemy as sa

from jobs.database import Database
from jobs.database_clock import utcnow
from jobs.models import ANONYMOUS, DeliveryStatus, Job, WebhookDelivery, WebhookEndpoint
from jobs.statements import attempts
from jobs.statements import deliveries as outbox
from jobs.statements.leases import MAX_LOST
from jobs.use_cases import cancellation, deletion, retention, stages, submission, sweeping
from tests.executed_statements import executed
from tests.integration.rows import OUTPUT, QUESTION, claim, let_leases_run_out, submit
from tests.integration.webhooks.conftest import Register, all_are, list_all, sending, wait_for
from tests.receiver import Receiver


def complete(database: Database, job: Job, finish_reason: str = "stop") -> None:
    for stage_index in range(3):
        output = replace(OUTPUT, finish_reason=finish_reason)
        assert stages.record(database, claim(database, job, stage_index), output)


def end_in_every_way(database: Database) -> list[tuple[str, str]]:
    """End jobs in every way there is; return the type of each one's event, and its id."""
    completed, incomplete, failed, cancelled, overdue, lost = (submit(database) for _ in range(6))
    complete(database, completed)
    complete(database, incomplete, "length")
    stages.fail(database, claim(database, failed), "server_error", "a fault")
    cancellation.cancel(database, ANONYMOUS, cancelled.id)
    for _ in range(MAX_LOST):
        claim(database, lost, exclusive=True)
        let_leases_run_out(database)
        sweeping.sweep(database)
    stages.release(database, claim(database, overdue), "the worker shut down")
    with database.engine.begin() as connection:
        late = sa.update(Job).where(Job.id == overdue.id)
        connection.execute(late.values(deadline_at=utcnow(-60)))
    assert sweeping.sweep(database).failed == [overdue.id]
    return [
        ("response.completed", completed.id),
        ("response.incomplete", incomplete.id),
        ("response.failed", failed.id),
        ("response.cancelled", cancelled.id),
        ("response.failed", lost.id),
        ("response.failed", overdue.id),
    ]


def test_every_end_of_a_job_is_told_once_and_openais_client_reads_it(
    database: Database, receiver: Receiver, endpoint: WebhookEndpoint
) -> None:
    expected = end_in_every_way(database)
    with sending(database):
        received = receiver.wait_for(len(expected))
        wait_for(database, endpoint, all_are(DeliveryStatus.DELIVERED))
    events = [webhook.unwrap(endpoint.secret) for webhook in received]
    assert sorted((event.type, event.data.id) for event in events) == sorted(expected)
    for event, webhook in zip(events, received, strict=True):
        assert (event.object, webhook.id) == ("event", event.id)
        assert webhook.path == "/hook"
        assert webhook.headers["content-type"] == "application/json"
        assert webhook.headers["host"] == f"127.0.0.1:{receiver.port}"
    assert len(receiver.received) == len(expected)
    [attempt] = list_all(database, endpoint)[0].attempts
    assert (attempt["status_code"], attempt["error"]) == (204, None)
    assert 0 < attempt["duration"] < 15


def test_the_events_of_jobs_that_end_together_take_as_many_statements_as_one(
    database: Database, endpoint: WebhookEndpoint
) -> None:
    def end(count: int) -> int:
        """End so many jobs in one sweep; return how many statements that takes."""
        overdue = [submit(database).id for _ in range(count)]
        for job_id in overdue:
            stages.release(database, claim(database, Job(id=job_id)), "the worker shut down")
        with database.engine.begin() as connection:
            late = sa.update(Job).where(Job.id.in_(overdue))
            connection.execute(late.values(deadline_at=utcnow(-60)))
        with executed(database.engine) as statements:
            assert sorted(sweeping.sweep(database).failed) == sorted(overdue)
        return len(statements)

    assert end(1) == end(20)
    assert len(list_all(database, endpoint)) == 21


def test_an_end_that_is_not_committed_is_not_told(
    database: Database, endpoint: WebhookEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = submit(database)
    claimed = claim(database, job)

    def fault(*_: object, **__: object) -> None:  # a fake fault at the end of the transaction
        raise RuntimeError("a fault")

    monkeypatch.setattr(attempts, "end", fault)
    with pytest.raises(RuntimeError):
        stages.fail(database, claimed, "server_error", "a fault")
    assert list_all(database, endpoint) == []
    cancellation.cancel(database, ANONYMOUS, job.id)
    cancellation.cancel(database, ANONYMOUS, job.id)
    [delivery] = list_all(database, endpoint)
    assert delivery.event_type == "response.cancelled"


def test_each_endpoint_of_the_owner_gets_the_types_that_it_wants(
    database: Database, register: Register
) -> None:
    url = "http://127.0.0.1:9999/"
    every = register(url)
    some = register(url, event_types=["response.cancelled", "batch.completed"])
    foreign = register(url, owner="alice")
    mine = submit(database)
    other, _ = submission.submit(database, "alice", QUESTION, max_queued=9)
    complete(database, mine)
    cancellation.cancel(database, ANONYMOUS, submit(database).id)
    cancellation.cancel(database, "alice", other.id)
    with database.write() as connection:
        outbox.add_events(connection, ANONYMOUS, [("batch.completed", "batch_1")])

    def told(endpoint: WebhookEndpoint) -> list[str]:
        return [delivery.event_type for delivery in list_all(database, endpoint)]

    assert told(every) == ["response.completed", "response.cancelled", "batch.completed"]
    assert told(some) == ["response.cancelled", "batch.completed"]
    assert told(foreign) == ["response.cancelled"]
    # An event has one id, wherever it goes.
    [to_every, to_some] = [list_all(database, endpoint)[-1] for endpoint in (every, some)]
    assert to_every.event_id == to_some.event_id


def test_deliveries_are_deleted_with_their_job(
    database: Database, endpoint: WebhookEndpoint
) -> None:
    first, old, kept = (submit(database) for _ in range(3))
    for job in (first, old, kept):
        cancellation.cancel(database, ANONYMOUS, job.id)
    deletion.delete(database, ANONYMOUS, first.id)
    with database.engine.begin() as connection:
        ended = sa.update(Job).where(Job.id == old.id)
        connection.execute(ended.values(finished_at=utcnow(-3 * 86_400)))
    assert retention.delete_jobs(database, 2) == 1
    assert [delivery.object_id for delivery in list_all(database, endpoint)] == [kept.id]


def test_jobs_of_owners_without_endpoints_add_no_rows(
    database: Database, register: Register
) -> None:
    register("http://127.0.0.1:9999/", owner="alice")
    end_in_every_way(database)
    with database.engine.connect() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(WebhookDelivery)) == 0
