"""A job as OpenAI's event stream: the same events with the same numbers, live or years later.

The events are a function of the job's rows, where each finished text is kept with the
pieces it was streamed in, and, for the stage that runs just now, of the live pieces.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from jobs import pipeline
from jobs.models import Attempt, AttemptStatus, Job, Status
from jobs.pipeline import Stage
from web.v1 import render

Event = dict[str, Any]


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


def delta(job: Job, attempt: Attempt, piece: str) -> Event:
    """Give the event of one piece of an attempt's text."""
    return _delta(job, pipeline.stages(job.rounds)[attempt.position], piece)


def _delta(job: Job, stage: Stage, piece: str) -> Event:
    name, extra = _kind(job, stage)
    return {"type": f"{name}.delta", **_place(job, stage), "delta": piece, **extra}


def _kind(job: Job, stage: Stage) -> tuple[str, dict[str, Any]]:
    """Name the events of a stage's text, and give the fields that only some of them have."""
    if render.is_message(job, stage):
        return "response.output_text", {"logprobs": []}
    return "response.reasoning_text", {}


def _place(job: Job, stage: Stage) -> dict[str, Any]:
    return {
        "item_id": render.item_id(job, stage),
        "output_index": stage.position,
        "content_index": 0,
    }


def _item(job: Job, stage: Stage, attempt: Attempt, live: dict[int, list[str]]) -> Iterator[Event]:
    content = _place(job, stage)
    name, extra = _kind(job, stage)
    yield {
        "type": "response.output_item.added",
        "output_index": stage.position,
        "item": render.item(job, stage, None, "in_progress"),
    }
    yield {
        "type": "response.content_part.added",
        **content,
        "part": render.part(job, stage, ""),
    }
    deltas = live.get(attempt.id, [])
    if attempt.status is not AttemptStatus.RUNNING:
        deltas = _pieces(attempt.output or "", attempt.deltas or [])
    for piece in deltas:
        yield _delta(job, stage, piece)
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
