"""The events of jobs."""

from __future__ import annotations

import json
from typing import Any

import pytest

from jobs.models import AttemptStatus, Job, Status
from jobs.protocol.events import Pieces, events, running_text, to_json
from jobs.protocol.response import response
from tests.event_types import BEGIN, MESSAGE, REASONING
from tests.unit.protocol.rows import add_attempt, completed_job, make_job


def all_events(job: Job, live: dict[str, list[str]] | None = None) -> list[dict[str, Any]]:
    """List the events of a job, none of which is missing."""
    job_events = list(events(job, live or {}))
    assert None not in job_events
    return [event for event in job_events if event is not None]


def pieces_of(job: Job) -> Pieces:
    """Return what makes the events of the running attempt's pieces."""
    text = running_text(job, {})
    assert text is not None
    return text.pieces


def types(stream: list[dict[str, Any]]) -> list[str]:
    return [event["type"] for event in stream]


def test_a_queued_job_has_two_events() -> None:
    stream = all_events(make_job())
    assert types(stream) == ["response.created", "response.queued"]
    assert stream[0]["response"]["status"] == "queued"


def test_a_completed_job_has_the_events_of_all_its_stages() -> None:
    job = completed_job()
    stream = all_events(job)
    assert types(stream) == [*BEGIN, *REASONING, *REASONING, *MESSAGE, "response.completed"]
    assert stream[-1]["response"] == response(job)
    assert [e["delta"] for e in stream if e["type"] == "response.output_text.delta"] == [
        "One ",
        "two.",
    ]
    assert [e["output_index"] for e in stream if e["type"] == "response.output_item.done"] == [
        0,
        1,
        2,
    ]


def test_a_running_stage_has_the_live_pieces() -> None:
    job = make_job(Status.IN_PROGRESS)
    attempt = add_attempt(job, 0, AttemptStatus.RUNNING)
    before = all_events(job)
    assert types(before) == [*BEGIN, *REASONING[:3]]
    stream = all_events(job, {attempt.text_id: ["One ", "t"]})
    assert stream[: len(before)] == before
    pieces = pieces_of(job)
    assert stream[len(before) :] == [*pieces.events("One "), *pieces.events("t")]
    assert len(pieces) == len(pieces.events("One "))


def test_a_cancelled_job_ends_as_incomplete() -> None:
    stream = all_events(make_job(Status.CANCELLED, started_at=None))
    assert types(stream) == ["response.created", "response.queued", "response.incomplete"]
    assert stream[-1]["response"]["status"] == "cancelled"


def test_the_partial_text_of_a_cancelled_stage_is_streamed() -> None:
    job = make_job(Status.CANCELLED)
    add_attempt(job, 0, AttemptStatus.CANCELLED, output="One", delta_lengths=[3])
    stream = all_events(job)
    assert types(stream)[-7:] == [*REASONING[-6:], "response.incomplete"]
    assert stream[-2]["item"]["status"] == "incomplete"
    assert stream[-2]["item"]["content"][0]["text"] == "One"


def test_a_failed_job_ends_as_failed() -> None:
    job = make_job(Status.FAILED, error_code="server_error", error_message="It broke.")
    add_attempt(job, 0, AttemptStatus.FAILED)
    stream = all_events(job)
    assert stream[-1]["type"] == "response.failed"
    assert stream[-1]["response"]["error"]["message"] == "It broke."


def test_a_summary_is_the_text() -> None:
    stream = all_events(completed_job())
    pieces = [e["delta"] for e in stream if e["type"] == "response.reasoning_summary_text.delta"]
    assert pieces == ["One ", "two."] * 2
    done = [e for e in stream if e["type"] == "response.reasoning_summary_part.done"]
    assert [e["part"] for e in done] == [{"type": "summary_text", "text": "One two."}] * 2
    assert [(e["output_index"], e["summary_index"]) for e in done] == [(0, 0), (1, 0)]


def test_an_attempt_after_a_lost_one_continues_its_events() -> None:
    job = make_job(Status.IN_PROGRESS)
    lost = add_attempt(job, 0, AttemptStatus.RUNNING)
    before = all_events(job, {lost.text_id: ["One ", "two "]})
    lost.status, lost.output, lost.delta_lengths = AttemptStatus.LOST, "One two ", [4, 4]
    assert all_events(job) == before
    retried = add_attempt(job, 0, AttemptStatus.RUNNING, number=2)
    for pieces in ([], ["One "], ["One", " t"], ["One two ", ""]):
        again = all_events(job, {retried.text_id: pieces})
        assert again[: len(before)] == before
        assert not any(event["delta"] for event in again[len(before) :])
    more = all_events(job, {retried.text_id: ["One ", "two three ", "four "]})
    assert [e["delta"] for e in more[len(before) :]] == ["three "] * 2 + ["four "] * 2


def test_another_text_after_a_lost_one_has_an_item_of_its_own() -> None:
    """A server of models may generate another text at the second attempt."""
    job = make_job(Status.IN_PROGRESS)
    lost = add_attempt(job, 0, AttemptStatus.RUNNING)
    before = all_events(job, {lost.text_id: ["One "]})
    lost.status, lost.output, lost.delta_lengths = AttemptStatus.LOST, "One ", [4]
    retried = add_attempt(job, 0, AttemptStatus.RUNNING, number=2)
    live = all_events(job, {retried.text_id: ["On", "ce "]})
    retried.status, retried.output, retried.delta_lengths = AttemptStatus.FINISHED, "Once ", [2, 3]
    retried.finish_reason = "stop"
    late = all_events(job)
    assert live[: len(before)] == before
    assert late[: len(live)] == live
    done = [e for e in late if e["type"] == "response.output_item.done"]
    assert [(e["output_index"], e["item"]["status"]) for e in done] == [
        (0, "incomplete"),
        (1, "completed"),
    ]
    assert [e["item"]["content"][0]["text"] for e in done] == ["One ", "Once "]
    first, second = (e["item"]["id"] for e in done)
    assert second == f"{first}_1_2", "an item of its own"
    assert [item["id"] for item in response(job)["output"]] == [second]


def test_a_text_that_is_shorter_than_what_was_lost_has_an_item_of_its_own() -> None:
    job = make_job(Status.IN_PROGRESS)
    add_attempt(job, 0, AttemptStatus.LOST, output="One two", delta_lengths=[4, 3])
    finished = add_attempt(job, 0, number=2, output="One ", delta_lengths=[4])
    stream = all_events(job)
    done = [e["item"] for e in stream if e["type"] == "response.output_item.done"]
    assert [item["content"][0]["text"] for item in done] == ["One two", "One "]
    assert done[-1] == response(job)["output"][0]
    assert finished.output == "One "


@pytest.mark.parametrize("status", [Status.FAILED, Status.CANCELLED])
def test_the_longest_text_of_lost_attempts_is_streamed(status: Status) -> None:
    job = make_job(Status.IN_PROGRESS)
    for number, text in enumerate(["One ", "One two ", "On"], 1):
        add_attempt(
            job,
            0,
            AttemptStatus.LOST,
            number=number,
            output=text,
            delta_lengths=[2] * (len(text) // 2),
        )
    before = all_events(job)
    job.status = status
    stream = all_events(job)
    assert stream[: len(before)] == before
    assert stream[-2]["item"]["content"][0]["text"] == "One two "
    assert stream[-2]["item"]["status"] == "incomplete"


def test_a_job_that_goes_on_after_a_failure_continues_its_events() -> None:
    job = make_job(Status.IN_PROGRESS)
    add_attempt(job, 0, AttemptStatus.FAILED, output="One ", delta_lengths=[4])
    waiting = all_events(job)
    assert types(waiting) == [*BEGIN, *REASONING[:5]]
    retried = add_attempt(job, 0, AttemptStatus.RUNNING, number=2)
    assert all_events(job, {retried.text_id: ["On"]}) == waiting


def test_the_numbers_of_a_text_that_nobody_knows_are_left_out() -> None:
    """Redis lost it, and live readers may have got it."""
    job = make_job(Status.FAILED, error_code="worker_lost", error_message="Three workers.")
    lost = add_attempt(job, 0, AttemptStatus.LOST)
    stream = list(events(job, {}))
    assert stream.count(None) == 2 * (lost.max_output_tokens + 1)
    assert [e["type"] for e in stream[-6:] if e] == [*REASONING[-5:], "response.failed"]


def test_a_restart_keeps_earlier_events_and_their_numbers() -> None:
    job = make_job(Status.IN_PROGRESS)
    add_attempt(job, 0)
    running = add_attempt(job, 1, AttemptStatus.RUNNING)
    before = list(events(job, {running.text_id: ["One "]}))
    running.status = AttemptStatus.LOST
    job.run = 2
    add_attempt(job, 0)
    after = list(events(job, {}))
    # The piece that was streamed live is not stored; nothing else has its number.
    assert after[: len(before) - 2] == before[:-2]
    gap = after.count(None)
    assert gap == 2 * (running.max_output_tokens + 1), "as many as the stage may have streamed"
    assert after[len(before) - 2 :][:gap] == [None] * gap
    rest = [event for event in after[len(before) - 2 + gap :] if event is not None]
    assert types(rest) == [*REASONING[-5:], "response.in_progress", *REASONING]
    assert rest[0]["text"] == ""
    assert (rest[5]["response"]["run"], rest[-1]["output_index"]) == (2, 2)


def test_json_is_ascii() -> None:
    job = make_job(Status.IN_PROGRESS)
    add_attempt(job, 0, AttemptStatus.RUNNING)
    text = "ä\u2028\n\0☃"
    body = to_json(pieces_of(job).events(text)[-1], 3)
    assert body.isascii()
    assert "\n" not in body
    assert (json.loads(body)["delta"], json.loads(body)["sequence_number"]) == (text, 3)


@pytest.mark.parametrize("stage_index", [0, 2])
def test_live_pieces_are_the_json_of_their_events(stage_index: int) -> None:
    """A stream has the same bytes while a text is generated and when it is read later."""
    job = make_job(Status.IN_PROGRESS)
    for earlier in range(stage_index):
        add_attempt(job, earlier)
    add_attempt(job, stage_index, AttemptStatus.RUNNING)
    pieces, text = pieces_of(job), 'ä\u2028\n"☃'
    expected = [(e["type"], to_json(e, 7 + n)) for n, e in enumerate(pieces.events(text))]
    assert pieces.to_json(text, 7) == expected
    assert len(expected) == len(pieces) == (2 if stage_index == 0 else 1)
