"""The history of a job: everything that is stored about it, for audits."""

from __future__ import annotations

import datetime as dt
from typing import Any

from jobs.models import Attempt, Job
from jobs.tlog.entry import digest


def history(job: Job) -> dict[str, Any]:
    """Return the history of a job.

    Args:
        job: with its input items, its attempts and their workers loaded.
    """
    told = {
        **summary(job),
        "system": job.system,
        "context": job.context,
        "turns": job.turns,
        "input_items": job.input_items,
        "previous_response_id": job.previous_response_id,
        "options": job.options or {},
        "temperature": job.temperature,
        "top_k": job.top_k,
        "top_p": job.top_p,
        "max_output_tokens": job.max_output_tokens,
        "seed": job.seed,
        "background": job.background,
        "deadline_at": _time(job.deadline_at),
        "restarts": [_restart(restart) for restart in job.restarts],
        "retries": [_retry(retry) for retry in job.retries],
        "attempts": [_attempt(attempt) for attempt in job.attempts],
    }
    if job.log_salt is None:
        return {**told, "digest": None, "log": None}
    log = {"index": job.log_index, "salt": job.log_salt.hex()}
    return {**told, "digest": digest(told, job.log_salt), "log": log}


def summary(job: Job) -> dict[str, Any]:
    """Return what a list of histories says about a job."""
    error = {"code": job.error_code, "message": job.error_message} if job.error_code else None
    return {
        "id": job.id,
        "owner": job.owner,
        "key": job.key_id,
        "status": job.status.value,
        "question": job.question,
        "rounds": job.rounds,
        "priority": job.priority,
        "metadata": job.metadata_,
        "replay_of": job.replay_of,
        "batch": job.batch_id and {"id": job.batch_id, "custom_id": job.custom_id},
        "model": job.model and f"sha256:{job.model}",
        "run": job.run,
        "created_at": _time(job.created_at),
        "started_at": _time(job.started_at),
        "finished_at": _time(job.finished_at),
        "error": error,
    }


def _attempt(attempt: Attempt) -> dict[str, Any]:
    return {
        "position": attempt.stage_index,
        "role": attempt.role.value,
        "round": attempt.round,
        "run": attempt.run,
        "number": attempt.number,
        "status": attempt.status.value,
        "prompt": attempt.prompt,
        "output": attempt.output,
        "temperature": attempt.temperature,
        "top_k": attempt.top_k,
        "top_p": attempt.top_p,
        "max_output_tokens": attempt.max_output_tokens,
        "seed": attempt.seed,
        "prompt_tokens": attempt.prompt_tokens,
        "output_tokens": attempt.output_tokens,
        "finish_reason": attempt.finish_reason,
        "queued_at": _time(attempt.queued_at),
        "started_at": _time(attempt.started_at),
        "first_token_at": _time(attempt.first_token_at),
        "finished_at": _time(attempt.finished_at),
        "error": attempt.error,
        "worker": {
            "id": attempt.worker.id,
            "host": attempt.worker.host,
            "pid": attempt.worker.pid,
            "model": f"sha256:{attempt.worker.model}",
            **attempt.worker.runtime,
        },
    }


def _restart(restart: dict[str, Any]) -> dict[str, Any]:
    return {
        "run": restart["run"],
        "at": _time(dt.datetime.fromisoformat(restart["at"])),
        "model_before": f"sha256:{restart['model']}",
        "reason": restart["reason"],
    }


def _retry(retry: dict[str, Any]) -> dict[str, Any]:
    return {
        "at": _time(dt.datetime.fromisoformat(retry["at"])),
        "finished_at": _time(dt.datetime.fromisoformat(retry["finished_at"])),
        "error": {"code": retry["code"], "message": retry["message"]},
        "entry": retry["entry"],
    }


def _time(time: dt.datetime | None) -> str | None:
    """Return a time as RFC 3339 in UTC with milliseconds."""
    return None if time is None else time.isoformat(timespec="milliseconds").replace("+00:00", "Z")
