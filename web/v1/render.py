"""A job in the shape of OpenAI's Response object."""

from __future__ import annotations

import datetime as dt
from typing import Any

from jobs import pipeline
from jobs.models import Attempt, Job, Status
from jobs.pipeline import Stage


def response(job: Job, *, as_of: Status | None = None, run: int | None = None) -> dict[str, Any]:
    """Render a job as it stands.

    Args:
        job: with its attempts loaded.
        as_of: render it as it stood when it came to this earlier status, without output.
        run: of that time; the job's if not given.
    """
    status = as_of or job.status
    chain = pipeline.stages(job.rounds)
    finished = [] if as_of else job.finished
    error = None
    if status is Status.FAILED:
        error = {"code": job.error_code, "message": job.error_message}
    return {
        "id": job.id,
        "object": "response",
        "created_at": _seconds(job.created_at),
        "status": status.value,
        "background": job.background,
        "completed_at": _seconds(job.finished_at) if status is Status.COMPLETED else None,
        "error": error,
        "incomplete_details": (
            {"reason": "max_output_tokens"} if status is Status.INCOMPLETE else None
        ),
        "instructions": job.system,
        "max_output_tokens": job.max_output_tokens,
        "metadata": job.labels,
        "model": pipeline.MODEL,
        "output": [
            item(job, chain[attempt.position], attempt.output or "", _item_status(attempt))
            for attempt in finished
        ],
        "parallel_tool_calls": False,
        "previous_response_id": None,
        "temperature": job.temperature,
        "tool_choice": "none",
        "tools": [],
        "top_p": job.top_p,
        "usage": _usage(job, finished) if finished else None,
        "top_k": job.top_k,
        "seed": job.seed,
        "rounds": job.rounds,
        "priority": job.priority,
        "run": run or job.run,
    }


def item_id(job: Job, stage: Stage, run: int | None = None) -> str:
    """Name an output item by its role and round: ``rs_critic_1_…``, ``msg_regenerator_1_…``.

    Those of later runs end with their number. Without ``run`` it is the job's.
    """
    prefix = "msg" if is_message(job, stage) else "rs"
    run = run or job.run
    suffix = f"_{run}" if run > 1 else ""
    return f"{prefix}_{stage.role}_{stage.round}_{job.id.removeprefix('resp_')}{suffix}"


def item(
    job: Job, stage: Stage, text: str | None, status: str, run: int | None = None
) -> dict[str, Any]:
    """Render a stage's output: the last one is the message, those before it reasoning.

    Args:
        job: whose stage it is.
        stage: which one.
        text: its output; None leaves the item without content, as when it begins.
        status: ``in_progress``, ``completed`` or ``incomplete``.
        run: which it belongs to; the job's if not given.
    """
    if is_message(job, stage):
        return {
            "type": "message",
            "id": item_id(job, stage, run),
            "status": status,
            "role": "assistant",
            "content": [] if text is None else [part(job, stage, text)],
        }
    return {
        "type": "reasoning",
        "id": item_id(job, stage, run),
        "summary": [],
        "content": [] if text is None else [part(job, stage, text)],
        "status": status,
    }


def part(job: Job, stage: Stage, text: str) -> dict[str, Any]:
    """Render the one content part of an item."""
    if is_message(job, stage):
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    return {"type": "reasoning_text", "text": text}


def is_message(job: Job, stage: Stage) -> bool:
    """Whether a stage's text is the answer: the last one's is."""
    return stage.position == len(pipeline.stages(job.rounds)) - 1


def _item_status(attempt: Attempt) -> str:
    return "completed" if attempt.finish_reason == "stop" else "incomplete"


def _usage(job: Job, finished: list[Attempt]) -> dict[str, Any]:
    last = len(pipeline.stages(job.rounds)) - 1
    given = sum(attempt.prompt_tokens or 0 for attempt in finished)
    made = sum(attempt.output_tokens or 0 for attempt in finished)
    reasoning = sum(a.output_tokens or 0 for a in finished if a.position != last)
    return {
        "input_tokens": given,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": made,
        "output_tokens_details": {"reasoning_tokens": reasoning},
        "total_tokens": given + made,
    }


def _seconds(time: dt.datetime | None) -> int | None:
    return None if time is None else int(time.timestamp())
