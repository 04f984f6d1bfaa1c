"""A job as OpenAI's event stream: the same events with the same numbers, live or years later.

The events are a function of the job's rows, where each finished text is kept with the
pieces it was streamed in, and, for the stage that runs just now, of the live pieces.

Where a job started again, with another model, the events of its earlier run stay, and those of the
next follow. What was told live of a stage that was broken off then is in nobody's rows: its numbers
stay empty for whoever reads later.
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

#: How attempts end whose text nobody has.
GONE = (AttemptStatus.LOST, AttemptStatus.RELEASED)


def events(job: Job, live: dict[int, list[str]]) -> Iterator[Event | None]:
    """Give all events of a job so far, in order, without their sequence numbers.

    None stands for a number under which a text that is gone may have been told.

    Args:
        job: with its attempts loaded.
        live: the pieces so far of attempts that are running, by attempt id.
    """
    queued = render.response(job, as_of=Status.QUEUED, run=1)
    yield {"type": "response.created", "response": queued}
    yield {"type": "response.queued", "response": queued}
    for run in range(1, job.run + 1):
        if job.started_at is not None:
            response = render.response(job, as_of=Status.IN_PROGRESS, run=run)
            yield {"type": "response.in_progress", "response": response}
        for stage in pipeline.stages(job.rounds):
            attempt = _telling(job, run, stage)
            if attempt is None:
                break
            yield from _item(job, stage, attempt, live)
    if job.status.final:
        kind = {Status.COMPLETED: "completed", Status.FAILED: "failed"}
        # OpenAI has no event for a cancelled response; the response itself says it.
        name = kind.get(job.status, "incomplete")
        yield {"type": f"response.{name}", "response": render.response(job)}


def _telling(job: Job, run: int, stage: Stage) -> Attempt | None:
    """Choose the attempt whose text the stream tells: the one that finished, or the last.

    An attempt that was lost or given back and the one after it in its run have the same seed, and
    so the same text: the stream goes on where it stopped. None comes after it in an earlier run.
    """
    attempts = [a for a in job.of_run(run) if a.position == stage.position]
    for attempt in attempts:
        if attempt.status is AttemptStatus.FINISHED:
            return attempt
    if not attempts or (attempts[-1].status in GONE and run == job.run):
        return None
    return attempts[-1]


def delta(job: Job, attempt: Attempt, piece: str) -> Event:
    """Give the event of one piece of an attempt's text."""
    return _delta(job, pipeline.stages(job.rounds)[attempt.position], attempt, piece)


def _delta(job: Job, stage: Stage, attempt: Attempt, piece: str) -> Event:
    name, extra = _kind(job, stage)
    return {"type": f"{name}.delta", **_place(job, stage, attempt), "delta": piece, **extra}


def _kind(job: Job, stage: Stage) -> tuple[str, dict[str, Any]]:
    """Name the events of a stage's text, and give the fields that only some of them have."""
    if render.is_message(job, stage):
        return "response.output_text", {"logprobs": []}
    return "response.reasoning_text", {}


def _place(job: Job, stage: Stage, attempt: Attempt) -> dict[str, Any]:
    earlier = sum(
        _telling(job, run, each) is not None
        for run in range(1, attempt.run)
        for each in pipeline.stages(job.rounds)
    )
    return {
        "item_id": render.item_id(job, stage, attempt.run),
        "output_index": earlier + stage.position,
        "content_index": 0,
    }


def _item(
    job: Job, stage: Stage, attempt: Attempt, live: dict[int, list[str]]
) -> Iterator[Event | None]:
    content = _place(job, stage, attempt)
    name, extra = _kind(job, stage)
    yield {
        "type": "response.output_item.added",
        "output_index": content["output_index"],
        "item": render.item(job, stage, None, "in_progress", attempt.run),
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
        yield _delta(job, stage, attempt, piece)
    if attempt.status is AttemptStatus.RUNNING:
        return
    if attempt.status in GONE:
        # At most a piece for each token, and one for the end.
        yield from itertools.repeat(None, attempt.max_output_tokens + 1)
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
        "output_index": content["output_index"],
        "item": render.item(job, stage, text, "completed" if done else "incomplete", attempt.run),
    }


def _pieces(text: str, lengths: list[int]) -> list[str]:
    ends = list(itertools.accumulate(lengths))
    return [text[end - length : end] for end, length in zip(ends, lengths, strict=True)]
