"""The events of a job's stream in OpenAI's shape, each with a fixed sequence number.

The events are a function of the job's rows: each finished text is stored with the lengths of the
pieces in which it was streamed. Only the text of the running attempt comes from elsewhere, as the
live pieces. So a stream has the same events with the same numbers whenever it is read.

If a job started again with another model, the events of the earlier runs stay, and those of the next
run follow. The text of a stage that was interrupted by the restart may have been streamed, and is not
stored. Its sequence numbers are left out of streams that are read later.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

from jobs import pipeline
from jobs.models import Attempt, AttemptStatus, Job, Status
from jobs.pipeline import Stage
from jobs.protocol.response import (
    content_part,
    is_message,
    item_id,
    item_status,
    output_item,
    response,
    summary_part,
)

#: An event without its sequence number.
Event = dict[str, Any]

_ENCODER = json.JSONEncoder(separators=(",", ":"))
#: Statuses of attempts that ended without a stored text.
_TEXT_LOST = (AttemptStatus.LOST, AttemptStatus.RELEASED)


def events(job: Job, live: dict[int, list[str]]) -> Iterator[Event | None]:
    """Yield all events of a job so far. An event's sequence number is its index.

    None is yielded for a number that an event with lost text may have had.

    Args:
        job: with its attempts loaded.
        live: the pieces so far of running attempts, by attempt id.
    """
    queued = response(job, as_of=Status.QUEUED, run=1)
    yield {"type": "response.created", "response": queued}
    yield {"type": "response.queued", "response": queued}
    for run in range(1, job.run + 1):
        if job.started_at is not None:
            started = response(job, as_of=Status.IN_PROGRESS, run=run)
            yield {"type": "response.in_progress", "response": started}
        for stage in pipeline.stages(job.rounds):
            attempt = _streamed_attempt(job, run, stage)
            if attempt is None:
                break
            yield from _stage_events(job, stage, attempt, live)
    if job.status.final:
        names = {Status.COMPLETED: "completed", Status.FAILED: "failed"}
        # OpenAI has no event for a cancelled response. The response has the status.
        name = names.get(job.status, "incomplete")
        yield {"type": f"response.{name}", "response": response(job)}


class Pieces:
    """The events of the pieces of an attempt's text. What all pieces have in common is made once.

    A piece of a draft or a critique is one of the item's content and one of its summary: some clients
    show the one, some the other.
    """

    def __init__(self, job: Job, attempt: Attempt) -> None:
        stage = pipeline.stages(job.rounds)[attempt.stage_index]
        location = _location(job, stage, attempt)
        name, extra = _text_event(job, stage)
        #: The events of a piece without its text.
        self._events: list[Event] = [{"type": f"{name}.delta", **location, **extra}]
        if not is_message(job, stage):
            summary = _summary_location(location)
            self._events.insert(0, {"type": "response.reasoning_summary_text.delta", **summary})
        #: Their types, and the events as JSON up to the text.
        self._heads = [
            (str(event["type"]), f'{_dumps(event)[:-1]},"delta":') for event in self._events
        ]

    def __len__(self) -> int:
        """Return how many events a piece has."""
        return len(self._events)

    def events(self, text: str) -> list[Event]:
        """Return the events of one piece."""
        return [{**event, "delta": text} for event in self._events]

    def to_json(self, text: str, sequence_number: int) -> list[tuple[str, str]]:
        """Return the types of a piece's events, and the events as `to_json` does.

        Args:
            text: of the piece.
            sequence_number: of its first event.
        """
        delta = _dumps(text)
        return [
            (kind, f'{head}{delta},"sequence_number":{number}}}')
            for number, (kind, head) in enumerate(self._heads, sequence_number)
        ]


def to_json(event: Event, sequence_number: int) -> str:
    """Return an event as JSON, in ASCII."""
    return _dumps({**event, "sequence_number": sequence_number})


def _dumps(value: Any) -> str:
    # ASCII: some readers take U+2028 and similar characters for the end of a line.
    return _ENCODER.encode(value)


def _streamed_attempt(job: Job, run: int, stage: Stage) -> Attempt | None:
    """Return the attempt whose text is streamed: the one that finished, or else the last one.

    After a lost or released attempt the next one of the same run generates the same text, because it
    has the same seed: the stream continues where it stopped. In an earlier run no attempt follows.
    """
    attempts = [a for a in job.of_run(run) if a.stage_index == stage.index]
    for attempt in attempts:
        if attempt.status is AttemptStatus.FINISHED:
            return attempt
    if not attempts or (attempts[-1].status in _TEXT_LOST and run == job.run):
        return None
    return attempts[-1]


def _stage_events(
    job: Job, stage: Stage, attempt: Attempt, live: dict[int, list[str]]
) -> Iterator[Event | None]:
    location = _location(job, stage, attempt)
    summary = _summary_location(location)
    name, extra = _text_event(job, stage)
    pieces = Pieces(job, attempt)
    yield {
        "type": "response.output_item.added",
        "output_index": location["output_index"],
        "item": output_item(job, stage, None, "in_progress", attempt.run),
    }
    if not is_message(job, stage):
        yield {
            "type": "response.reasoning_summary_part.added",
            **summary,
            "part": summary_part(""),
        }
    yield {
        "type": "response.content_part.added",
        **location,
        "part": content_part(job, stage, ""),
    }
    if attempt.status is AttemptStatus.RUNNING:
        for piece in live.get(attempt.id, []):
            yield from pieces.events(piece)
        return
    text = attempt.output or ""
    for piece in _pieces(text, attempt.delta_lengths or []):
        yield from pieces.events(piece)
    if attempt.status in _TEXT_LOST:
        # The maximum number of pieces: one for each token, and one for the end.
        most = attempt.max_output_tokens + 1
        yield from itertools.repeat(None, most * len(pieces))
    status = item_status(attempt)
    if not is_message(job, stage):
        yield {"type": "response.reasoning_summary_text.done", **summary, "text": text}
        yield {
            "type": "response.reasoning_summary_part.done",
            **summary,
            "part": summary_part(text),
        }
    yield {"type": f"{name}.done", **location, "text": text, **extra}
    yield {
        "type": "response.content_part.done",
        **location,
        "part": content_part(job, stage, text),
    }
    yield {
        "type": "response.output_item.done",
        "output_index": location["output_index"],
        "item": output_item(job, stage, text, status, attempt.run),
    }


def _summary_location(location: dict[str, Any]) -> dict[str, Any]:
    """Return the fields that say which summary an event is about. Each item has one."""
    return {
        "item_id": location["item_id"],
        "output_index": location["output_index"],
        "summary_index": 0,
    }


def _text_event(job: Job, stage: Stage) -> tuple[str, dict[str, Any]]:
    """Return the first part of a text event's type, and the fields that only some of them have."""
    if is_message(job, stage):
        return "response.output_text", {"logprobs": []}
    return "response.reasoning_text", {}


def _location(job: Job, stage: Stage, attempt: Attempt) -> dict[str, Any]:
    """Return the fields that say which content part an event is about."""
    items_of_earlier_runs = sum(
        _streamed_attempt(job, run, earlier) is not None
        for run in range(1, attempt.run)
        for earlier in pipeline.stages(job.rounds)
    )
    return {
        "item_id": item_id(job, stage, attempt.run),
        "output_index": items_of_earlier_runs + stage.index,
        "content_index": 0,
    }


def _pieces(text: str, lengths: list[int]) -> list[str]:
    """Split a text into pieces of these lengths."""
    ends = list(itertools.accumulate(lengths))
    return [text[end - length : end] for end, length in zip(ends, lengths, strict=True)]
