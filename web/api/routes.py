"""The calls of ``/api``."""

from __future__ import annotations

import datetime as dt
from typing import Any

from flask import Blueprint, Response, jsonify

from jobs.models import Attempt, Job
from web.services import services

blueprint = Blueprint("api", __name__)


@blueprint.get("/jobs/<job_id>")
def job(job_id: str) -> Response:
    """Tell everything that is kept of a job: every stage, every attempt, who ran it with what."""
    return jsonify(history(services().store.job(job_id)))


def history(found: Job) -> dict[str, Any]:
    """Render a job with its attempts and their workers loaded."""
    return {
        "id": found.id,
        "status": found.status.value,
        "question": found.question,
        "system": found.system,
        "temperature": found.temperature,
        "top_k": found.top_k,
        "top_p": found.top_p,
        "max_output_tokens": found.max_output_tokens,
        "seed": found.seed,
        "rounds": found.rounds,
        "priority": found.priority,
        "metadata": found.labels,
        "model": found.model and f"sha256:{found.model}",
        "run": found.run,
        "restarts": [_restart(told) for told in found.restarts],
        "created_at": _time(found.created_at),
        "started_at": _time(found.started_at),
        "finished_at": _time(found.finished_at),
        "error": (
            {"code": found.error_code, "message": found.error_message} if found.error_code else None
        ),
        "attempts": [_attempt(attempt) for attempt in found.attempts],
    }


def _attempt(attempt: Attempt) -> dict[str, Any]:
    return {
        "position": attempt.position,
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


def _restart(told: dict[str, Any]) -> dict[str, Any]:
    return {
        "run": told["run"],
        "at": _time(dt.datetime.fromisoformat(told["at"])),
        "model_before": f"sha256:{told['model']}",
        "reason": told["reason"],
    }


def _time(time: dt.datetime | None) -> str | None:
    return None if time is None else time.isoformat(timespec="milliseconds").replace("+00:00", "Z")
