"""A job as OpenAI's Response object."""

from __future__ import annotations

from typing import Any

from jobs import pipeline
from jobs.models import Attempt, Job, Status
from jobs.pipeline import Stage
from jobs.protocol.options import DEFAULTS
from jobs.protocol.streamed_texts import item_attempt
from jobs.times import timestamp


def response(job: Job, *, as_of: Status | None = None, run: int | None = None) -> dict[str, Any]:
    """Return the Response object of a job.

    Args:
        job: with its attempts loaded.
        as_of: an earlier status. The response is then as it was when the job entered it, without
            output. None for the job as it is now.
        run: the run at that time; by default the job's.
    """
    status = as_of or job.status
    stages = pipeline.stages(job.rounds)
    finished = [] if as_of else job.finished
    error = None
    if status is Status.FAILED:
        error = {"code": job.error_code, "message": job.error_message}
    return {
        "id": job.id,
        "object": "response",
        "created_at": timestamp(job.created_at),
        "status": status.value,
        "background": job.background,
        "completed_at": timestamp(job.finished_at) if status is Status.COMPLETED else None,
        "error": error,
        "incomplete_details": (
            {"reason": "max_output_tokens"} if status is Status.INCOMPLETE else None
        ),
        "instructions": job.system,
        "max_output_tokens": job.max_output_tokens,
        "metadata": job.metadata_,
        "model": pipeline.MODEL,
        "output": [
            output_item(
                job,
                stages[attempt.stage_index],
                attempt.output or "",
                item_status(attempt),
                _id_of(job, stages[attempt.stage_index], attempt),
            )
            for attempt in finished
        ],
        "previous_response_id": job.previous_response_id,
        "store": True,
        "temperature": job.temperature,
        "top_p": job.top_p,
        **DEFAULTS,
        # Of an imported job they may have any name, and would take the place of what the job has.
        **{name: value for name, value in (job.options or {}).items() if name in DEFAULTS},
        "usage": _usage(job, finished) if finished else None,
        "context": job.context,
        "top_k": job.top_k,
        "seed": job.seed,
        "stop": job.stop or None,
        "rounds": job.rounds,
        "priority": job.priority,
        "run": run or job.run,
        # The texts that were erased then or before are empty.
        "erased_at": timestamp(job.erased_at) if job.has_lost_texts else None,
    }


def item_id(job: Job, stage: Stage, run: int, attempt: Attempt | None = None) -> str:
    """Return the id of an output item: ``rs_critic_1_…``, ``msg_regenerator_1_…``.

    It names the stage's role and round. From the job's second run on it ends with the run's number.

    Args:
        job: whose output it is.
        stage: whose text it has.
        run: the run of the job.
        attempt: at the stage, if the run has an item of it already: an earlier attempt that was lost had
            begun another text. The id then ends with the numbers of run and attempt.
    """
    prefix = "msg" if is_message(job, stage) else "rs"
    suffix = f"_{run}" if run > 1 or attempt else ""
    if attempt:
        suffix += f"_{attempt.number}"
    return f"{prefix}_{stage.role}_{stage.round}_{job.id.removeprefix('resp_')}{suffix}"


def _id_of(job: Job, stage: Stage, finished: Attempt) -> str:
    """Return the id of the output item of a stage's finished attempt."""
    attempts = [a for a in job.of_run(finished.run) if a.stage_index == stage.index]
    return item_id(job, stage, finished.run, item_attempt(attempts))


def output_item(job: Job, stage: Stage, text: str | None, status: str, id_: str) -> dict[str, Any]:
    """Return the output item of a stage: a message for the last stage, reasoning for the others.

    Args:
        job: whose output it is.
        stage: which one.
        text: of the stage. None for an item without content, as when the stage starts.
        status: ``in_progress``, ``completed`` or ``incomplete``.
        id_: of the item.
    """
    content = [] if text is None else [content_part(job, stage, text)]
    if is_message(job, stage):
        return {
            "type": "message",
            "id": id_,
            "status": status,
            "role": "assistant",
            "content": content,
        }
    return {
        "type": "reasoning",
        "id": id_,
        "summary": [] if text is None else [summary_part(text)],
        "content": content,
        "status": status,
    }


def content_part(job: Job, stage: Stage, text: str) -> dict[str, Any]:
    """Return the content part of an output item. Each item has one."""
    if is_message(job, stage):
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    return {"type": "reasoning_text", "text": text}


def summary_part(text: str) -> dict[str, Any]:
    """Return the summary of a draft or a critique: its text. Some clients show summaries alone."""
    return {"type": "summary_text", "text": text}


def is_message(job: Job, stage: Stage) -> bool:
    """Return whether a stage's text is the final answer: it is for the last stage."""
    return stage.index == len(pipeline.stages(job.rounds)) - 1


def item_status(attempt: Attempt) -> str:
    """Return the status of the output item of an attempt that has ended."""
    return "completed" if attempt.is_whole else "incomplete"


def _usage(job: Job, finished: list[Attempt]) -> dict[str, Any]:
    """Return the sum of tokens over finished stages; all but the last one's output is reasoning."""
    last = len(pipeline.stages(job.rounds)) - 1
    prompt_tokens = sum(attempt.prompt_tokens or 0 for attempt in finished)
    output_tokens = sum(attempt.output_tokens or 0 for attempt in finished)
    reasoning_tokens = sum(a.output_tokens or 0 for a in finished if a.stage_index != last)
    return {
        "input_tokens": prompt_tokens,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": output_tokens,
        "output_tokens_details": {"reasoning_tokens": reasoning_tokens},
        "total_tokens": prompt_tokens + output_tokens,
    }
