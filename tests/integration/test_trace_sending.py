"""Ended jobs are sent to a receiver of traces: a real HTTP server."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from jobs.database import Database
from jobs.database_clock import utcnow
from jobs.models import TraceReceiver
from jobs.protocol.history import history
from jobs.trace_sending import TraceSending
from jobs.use_cases import deletion, erasing, reviewing, tracing
from tests.certificates import make_server_file
from tests.integration.sealed import end, seal
from tests.receiver import Receiver, Webhook, status


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


@pytest.fixture
def sending(database: Database, receiver: Receiver) -> TraceSending:
    """What sends to the receiver; `send` is what its thread calls. It has looked once."""
    end(database)
    seal(database)
    sending = TraceSending(database, receiver.url)
    assert sending.send() is False
    return sending


def received(receiver: Receiver) -> list[str]:
    """Return the jobs of the traces that have come, in their order."""
    ids = []
    for request in receiver.received:
        assert request.headers["content-type"] == "application/x-protobuf"
        sent = ExportTraceServiceRequest.FromString(request.body)
        spans = sent.resource_spans[0].scope_spans[0].spans
        roots = [s for s in spans if s.name.startswith("invoke_agent")]
        ids += [attributes(span)["gen_ai.response.id"] for span in roots]
    return ids


def attributes(told: Any) -> dict[str, Any]:
    """Return the attributes of a span or an event."""
    return {
        each.key: getattr(each.value, each.value.WhichOneof("value")) for each in told.attributes
    }


def spans(request: Webhook) -> dict[str, Any]:
    """Return the spans of a request by their ids."""
    sent = ExportTraceServiceRequest.FromString(request.body)
    return {span.span_id: span for span in sent.resource_spans[0].scope_spans[0].spans}


def ratings(span: Any) -> list[tuple[str, float, str | None]]:
    """Return the ratings of a span."""
    told = [attributes(e) for e in span.events if e.name == "gen_ai.evaluation.result"]
    prefix = "gen_ai.evaluation."
    return [
        (t[f"{prefix}name"], t[f"{prefix}score.value"], t.get(f"{prefix}explanation")) for t in told
    ]


def let_send_again(database: Database, seconds: float = -1) -> None:
    """Let the time after a failure pass, or set the clock back: then it would be over in some seconds."""
    with database.write() as connection:
        connection.execute(sa.update(TraceReceiver).values(next_at=utcnow(seconds)))


def test_a_receiver_with_a_certificate_of_its_own(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, file = make_server_file(tmp_path / "tls")
    receiver = Receiver(certificate=file)
    sending = TraceSending(database, receiver.url)
    sending.send()
    job = end(database)
    seal(database)
    sending.send()
    assert receiver.received == [], "it is not trusted"
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    let_send_again(database)
    sending.send()
    receiver.close()
    assert received(receiver) == [job.id]


def test_each_job_is_sent_once_it_is_in_the_log(
    database: Database, receiver: Receiver, sending: TraceSending, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing, "MAX_ENTRIES", 2)
    jobs = [end(database).id for _ in range(3)]
    assert sending.send() is False, "not before"
    seal(database)
    deletion.delete(database, None, jobs[1])
    seal(database)
    other = TraceSending(database, receiver.url)
    while sending.send() or other.send():
        pass
    assert received(receiver) == [jobs[0], jobs[2]]
    last = end(database).id
    seal(database)
    assert other.send()
    assert received(receiver)[2:] == [last]


def test_one_process_sends_at_a_time(database: Database, sending: TraceSending) -> None:
    assert sending
    end(database)
    seal(database)
    name = sending._name
    begun = tracing.begin_sending(database, name, lambda job: {"id": job.id}, 60)
    assert begun is not None
    assert (len(begun.histories), begun.end, begun.failures) == (1, 2, 0)
    assert tracing.begin_sending(database, name, lambda job: {"id": job.id}, 60) is None


def test_what_was_not_taken_is_sent_again(
    database: Database,
    receiver: Receiver,
    sending: TraceSending,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "jobs.trace_sending")
    first = end(database).id
    seal(database)
    receiver.reply = status(503)
    for seconds in (-1, 7200):
        let_send_again(database, seconds)
        assert sending.send() is False
    assert sending.send() is False, "too early"
    assert received(receiver) == [first, first]
    assert caplog.messages == ["the receiver of traces replied with the status 503"]
    receiver.reply = status(200)
    let_send_again(database)
    assert sending.send()
    assert caplog.messages[1:] == ["the receiver of traces takes them again"]
    # What it refuses for good does not keep others back.
    refused = end(database).id
    seal(database)
    receiver.reply = status(400)
    assert sending.send()
    assert caplog.messages[2:] == [f"the receiver of traces refuses {refused}: status 400"]
    receiver.reply = status(200)
    last = end(database).id
    seal(database)
    assert sending.send()
    assert received(receiver) == [first, first, first, refused, last]


def test_a_review_follows_its_job_as_scores_of_its_texts(
    database: Database, receiver: Receiver, sending: TraceSending, caplog: pytest.LogCaptureFixture
) -> None:
    def add(**verdict: Any) -> str:
        new = reviewing.NewReview(**verdict)
        return reviewing.add(database, None, job.id, new, reviewer="ann")

    job = end(database)
    early = add(regeneration=1)  # Before the job is sent: it is told once too.
    seal(database)
    assert sending.send()
    seal(database)
    assert sending.send()
    first, second = receiver.received
    sent = spans(first)
    assert [ratings(span) for span in sent.values()] == [[]] * 7
    [span] = spans(second).values()
    assert ratings(span) == [("regeneration", 1.0, None)]
    assert attributes(span.events[0])["helixq.review.id"] == early
    # A later one is sent again until it is taken.
    late = add(critique=-1, regeneration=0, note="No.")
    seal(database)
    receiver.reply = status(503)
    assert sending.send() is False
    receiver.reply = status(200)
    let_send_again(database)
    while sending.send():
        pass
    missed, taken = receiver.received[2:]
    assert missed.body == taken.body
    found = spans(taken).values()
    for span, role, rated in zip(
        found,
        ("critic", "regenerator"),
        (("critique", -1.0, "No."), ("regeneration", 0.0, "No.")),
        strict=True,
    ):
        parent = sent[span.parent_span_id]
        assert span.trace_id == parent.trace_id
        assert attributes(parent)["helixq.role"] == role
        assert ratings(span) == [rated]
        assert attributes(span)["helixq.review.id"] == late
    # What was erased meanwhile is left out, and so are words alone, which are no score.
    add(note="Words.")
    last = add(critique=1, note="Mine.")
    erasing.erase(database, None, job.id, history, ["/reviews/3/note"], erased_by="bob")
    seal(database)
    receiver.reply = status(400)
    while sending.send():
        pass
    [refused] = receiver.received[4:]
    assert [ratings(span) for span in spans(refused).values()] == [[("critique", 1.0, None)]]
    assert f"the receiver of traces refuses {last}: status 400" in caplog.text


def test_nobody_there(
    database: Database,
    receiver: Receiver,
    sending: TraceSending,
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert receiver.url
    away = TraceSending(database, "http://127.0.0.1:1/v1/traces")
    away.send()
    end(database)
    seal(database)
    assert away.send() is False
    assert "the receiver of traces does not respond" in caplog.text
    assert sending.send(), "each receiver has a place of its own"


def test_without_a_receiver_nothing_is_done(database: Database) -> None:
    sending = TraceSending(database, None)
    sending.start()
    assert sending.stop()
    with database.read() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(TraceReceiver)) == 0
