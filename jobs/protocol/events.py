"""The events of a job's stream in OpenAI's shape, each with a fixed sequence number.

The events are a function of the job's rows: each text is stored with the lengths of the pieces in which
it was streamed, that of an attempt that was lost included. Only the text of the running attempt comes from
elsewhere, as the live pieces. So a stream has the same events with the same numbers whenever it is read.

If a job started again with another model, the events of the earlier runs stay, and those of the next
run follow. A text that was lost with Redis may have been streamed, and is stored nowhere. If no later
attempt generated it again, its sequence numbers are left out.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
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
from jobs.protocol.streamed_texts import (
    Continuation,
    StreamedText,
    is_unknown,
    stored_pieces,
    streamed_texts,
)

#: An event without its sequence number.
Event = dict[str, Any]

_ENCODER = json.JSONEncoder(separators=(",", ":"))


def events(job: Job, live: dict[str, list[str]]) -> Iterator[Event | None]:
    """Yield all events of a job so far. An event's sequence number is its index.

    None is yielded for a number that an event with lost text may have had.

    Args:
        job: with its attempts loaded.
        live: the pieces so far of running attempts, by the ids of their texts.
    """
    queued = response(job, as_of=Status.QUEUED, run=1)
    yield {"type": "response.created", "response": queued}
    yield {"type": "response.queued", "response": queued}
    items = _items(job, live)
    for run in range(1, job.run + 1):
        if job.started_at is not None:
            started = response(job, as_of=Status.IN_PROGRESS, run=run)
            yield {"type": "response.in_progress", "response": started}
        for item in items:
            if item.run == run:
                yield from _item_events(item)
    if job.status.final:
        names = {Status.COMPLETED: "completed", Status.FAILED: "failed"}
        # OpenAI has no event for a cancelled response. The response has the status.
        name = names.get(job.status, "incomplete")
        yield {"type": f"response.{name}", "response": response(job)}


@dataclass
class _Item:
    """An output item as it is streamed: a text of a stage."""

    job: Job
    stage: Stage
    text: StreamedText
    output_index: int
    #: Whether nothing of it follows.
    has_ended: bool
    #: The attempt whose text it is, if that is the text of its stage.
    finished: Attempt | None = None
    #: The maximum number of its pieces that were streamed and are stored nowhere.
    lost_pieces: int = 0

    @property
    def run(self) -> int:
        return self.text.first.run

    @property
    def id(self) -> str:
        first = self.text.first
        return item_id(self.job, self.stage, first.run, first if self.text.number else None)

    @property
    def location(self) -> dict[str, Any]:
        """The fields that say which content part an event is about."""
        return {"item_id": self.id, "output_index": self.output_index, "content_index": 0}

    @property
    def summary_location(self) -> dict[str, Any]:
        """The fields that say which summary an event is about. Each item has one."""
        return {"item_id": self.id, "output_index": self.output_index, "summary_index": 0}

    @property
    def text_event(self) -> tuple[str, dict[str, Any]]:
        """The first part of a text event's type, and the fields that only some of them have."""
        if is_message(self.job, self.stage):
            return "response.output_text", {"logprobs": []}
        return "response.reasoning_text", {}


@dataclass
class RunningText:
    """The text of the running attempt, to which live pieces are added."""

    text_id: str
    pieces: Pieces
    #: How many pieces its item has.
    num_pieces: int
    #: How many of the attempt's pieces have been taken.
    num_taken: int
    continuation: Continuation


def running_text(job: Job, live: dict[str, list[str]]) -> RunningText | None:
    """Return the text of the running attempt, or None if there is none; the arguments are those of `events`."""
    running = [a for a in job.attempts if a.status is AttemptStatus.RUNNING]
    if not running:
        return None
    item = _items(job, live)[-1]
    attempt = running[-1]
    return RunningText(
        attempt.text_id,
        Pieces(item),
        len(item.text.pieces),
        len(live.get(attempt.text_id, ())),
        item.text.continuation,
    )


class Pieces:
    """The events of the pieces of an item's text. What all pieces have in common is made once.

    A piece of a draft or a critique is one of the item's content and one of its summary: some clients
    show the one, some the other.
    """

    def __init__(self, item: _Item) -> None:
        name, extra = item.text_event
        #: The events of a piece without its text.
        self._events: list[Event] = [{"type": f"{name}.delta", **item.location, **extra}]
        if not is_message(item.job, item.stage):
            summary = item.summary_location
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


def _items(job: Job, live: dict[str, list[str]]) -> list[_Item]:
    """Return the output items of a job so far, in their order."""
    items: list[_Item] = []
    for run in range(1, job.run + 1):
        of_run = job.of_run(run)
        for stage in pipeline.stages(job.rounds):
            attempts = [a for a in of_run if a.stage_index == stage.index]
            if not attempts:
                break
            items += _stage_items(job, stage, attempts, len(items), live)
    return items


def _stage_items(
    job: Job,
    stage: Stage,
    attempts: list[Attempt],
    output_index: int,
    live: dict[str, list[str]],
) -> list[_Item]:
    """Return the output items of a stage in one run."""
    texts = streamed_texts(attempts, lambda attempt: stored_pieces(attempt, live))
    items = [_Item(job, stage, text, output_index + text.number, has_ended=True) for text in texts]
    last = items[-1]
    last.finished = next((a for a in attempts if a.status is AttemptStatus.FINISHED), None)
    is_over = attempts[0].run < job.run or job.status.final
    last.has_ended = is_over or last.finished is not None
    if is_over and last.finished is None:
        # One piece for each token, and one for the end.
        lost = [a.max_output_tokens + 1 for a in attempts if is_unknown(a)]
        last.lost_pieces = max(lost, default=0)
    return items


def _item_events(item: _Item) -> Iterator[Event | None]:
    job, stage = item.job, item.stage
    location, summary = item.location, item.summary_location
    name, extra = item.text_event
    pieces = Pieces(item)
    yield {
        "type": "response.output_item.added",
        "output_index": item.output_index,
        "item": output_item(job, stage, None, "in_progress", item.id),
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
    for piece in item.text.pieces:
        yield from pieces.events(piece)
    if not item.has_ended:
        return
    yield from itertools.repeat(None, item.lost_pieces * len(pieces))
    # Of an erased text there are no pieces either.
    text = item.text.text
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
    status = "incomplete" if item.finished is None else item_status(item.finished)
    yield {
        "type": "response.output_item.done",
        "output_index": item.output_index,
        "item": output_item(job, stage, text, status, item.id),
    }
