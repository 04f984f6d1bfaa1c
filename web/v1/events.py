"""A job as OpenAI's event stream: the same events with the same numbers, live or years later.

The events are a function of the job's rows, where each finished text is kept with the
pieces it was streamed in, and, for the stage that runs just now, of the live pieces.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from typing import Any

from jobs import pipeline
from jobs.models import Attempt, AttemptStatus, Job, Status
from jobs.pipeline import Stage
from web.services import Services
from web.v1 import render

Event = dict[str, Any]

#: What shows that a silent stream is alive: a comment, in which every reader sees nothing. No empty line
#: follows it: that would end an event. There is none, but the official OpenAI clients hand out an event
#: without data there, once they have seen an ``id``, and fail to read it. For the same reason there is no
#: ``retry``.
WAITING = ": waiting\n"
#: Seconds to wait for the worker to hand in what a cancelled stage had generated.
PARTIAL_GRACE = 2.0


def events(job: Job, live: dict[int, list[str]]) -> Iterator[Event]:
    """Give all events of a job so far, in order, without their sequence numbers.

    Args:
        job: with its attempts loaded.
        live: the pieces so far of attempts that are running, by attempt id.
    """
    yield {"type": "response.created", "response": render.response(job, as_of=Status.QUEUED)}
    yield {"type": "response.queued", "response": render.response(job, as_of=Status.QUEUED)}
    if job.started_at is not None:
        response = render.response(job, as_of=Status.IN_PROGRESS)
        yield {"type": "response.in_progress", "response": response}
    for stage in pipeline.stages(job.rounds):
        attempt = _telling(job, stage)
        if attempt is None:
            break
        yield from _item(job, stage, attempt, live)
    if job.status.final:
        kind = {Status.COMPLETED: "completed", Status.FAILED: "failed"}
        # OpenAI has no event for a cancelled response; the response itself says it.
        name = kind.get(job.status, "incomplete")
        yield {"type": f"response.{name}", "response": render.response(job)}


def _telling(job: Job, stage: Stage) -> Attempt | None:
    """Choose the attempt whose text the stream tells: the one that finished, or the last.

    An attempt that was lost or given back and the one after it have the same seed, and so
    the same text: the stream goes on where it stopped.
    """
    attempts = [a for a in job.attempts if a.position == stage.position]
    for attempt in attempts:
        if attempt.status is AttemptStatus.FINISHED:
            return attempt
    if not attempts or attempts[-1].status in (AttemptStatus.LOST, AttemptStatus.RELEASED):
        return None
    return attempts[-1]


def _item(job: Job, stage: Stage, attempt: Attempt, live: dict[int, list[str]]) -> Iterator[Event]:
    place = {"item_id": render.item_id(job, stage), "output_index": stage.position}
    content = {**place, "content_index": 0}
    opened = render.item(job, stage, None, "in_progress")
    message = opened["type"] == "message"
    name = "response.output_text" if message else "response.reasoning_text"
    extra: dict[str, Any] = {"logprobs": []} if message else {}
    yield {
        "type": "response.output_item.added",
        "output_index": stage.position,
        "item": opened,
    }
    yield {
        "type": "response.content_part.added",
        **content,
        "part": render.part(job, stage, ""),
    }
    deltas = live.get(attempt.id, [])
    if attempt.status is not AttemptStatus.RUNNING:
        deltas = _pieces(attempt.output or "", attempt.deltas or [])
    for delta in deltas:
        yield {"type": f"{name}.delta", **content, "delta": delta, **extra}
    if attempt.status is AttemptStatus.RUNNING:
        return
    text = attempt.output or ""
    done = attempt.status is AttemptStatus.FINISHED and attempt.finish_reason == "stop"
    yield {"type": f"{name}.done", **content, "text": text, **extra}
    yield {
        "type": "response.content_part.done",
        **content,
        "part": render.part(job, stage, text),
    }
    yield {
        "type": "response.output_item.done",
        "output_index": stage.position,
        "item": render.item(job, stage, text, "completed" if done else "incomplete"),
    }


def _pieces(text: str, lengths: list[int]) -> list[str]:
    ends = list(itertools.accumulate(lengths))
    return [text[end - length : end] for end, length in zip(ends, lengths, strict=True)]


def stream(found: Services, job_id: str, after: int) -> Iterator[str]:
    """Send a job's events as server-sent events until it has ended.

    Args:
        found: the application's services.
        job_id: of a job that exists.
        after: the last sequence number the client has; -1 for all events.
    """
    live: dict[int, list[str]] = {}
    cursor = "0"
    sent = after
    spoke = time.monotonic()
    give_up = 0.0
    block = 0.0
    while not found.stopping():
        news = found.progress.read(job_id, cursor, block)
        cursor = news.cursor
        for text in news.texts:
            pieces = live.setdefault(text.attempt_id, [])
            if text.start == len(pieces):  # else some are missing; the record will have all
                pieces += text.deltas
        job = found.store.job(job_id)
        if _partial_missing(job):
            give_up = give_up or time.monotonic() + PARTIAL_GRACE
            if time.monotonic() < give_up:
                block = 0.2
                continue
        told = list(events(job, live))
        for number, event in enumerate(told[max(0, sent + 1) :], start=max(0, sent + 1)):
            yield _message(number, event)
            sent, spoke = number, time.monotonic()
        if job.status.final:
            if len(told) - 1 < sent:
                # Text that was told live went down with its worker; the end must be told.
                yield _message(sent + 1, told[-1])
            return
        block = min(1.0, found.keepalive)
        if time.monotonic() - spoke > found.keepalive:
            spoke = time.monotonic()
            yield WAITING


def _partial_missing(job: Job) -> bool:
    """Whether the worker has yet to hand in the text of a stage whose job has ended."""
    return job.status.final and any(a.status is AttemptStatus.RUNNING for a in job.attempts)


def _message(number: int, event: Event) -> str:
    # ASCII: some readers take U+2028 and others of its kind for the end of a line.
    data = json.dumps({**event, "sequence_number": number}, separators=(",", ":"))
    # The id lets a browser's EventSource go on by itself after a lost connection.
    return f"id: {number}\nevent: {event['type']}\ndata: {data}\n\n"
