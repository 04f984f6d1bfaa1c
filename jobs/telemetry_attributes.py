"""What spans of a job say, as attributes of OpenTelemetry's semantic conventions: GenAI's and messaging's.

What they do not have begins with ``helixq.``.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from jobs.pipeline import MODEL

PROVIDER = "helixq"
#: What the queue is, and the prefix of the names of its queues (`jobs.queue`, which imports Celery).
MESSAGING, QUEUE = "redis", "helixq"
FAILED = ("failed", "lost")
#: Ports of addresses that name none.
_PORTS = {"http": 80, "https": 443}

Value = str | int | float | bool | Sequence[str] | None


def of_job(history: Mapping[str, Any]) -> dict[str, Value]:
    """Return what is said of a job."""
    error, number = history["error"], last(history, "regenerator")
    final = None if number is None else history["attempts"][number]
    asked = [(t["role"], t["text"]) for t in history["turns"] or []]
    if history["question"] is not None:
        asked.append(("user", history["question"]))
    return {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.provider.name": PROVIDER,
        "gen_ai.agent.name": MODEL,
        "gen_ai.request.model": MODEL,
        "gen_ai.response.id": history["id"],
        "gen_ai.output.type": "text",
        "gen_ai.request.stop_sequences": history["stop"],
        "gen_ai.system_instructions": None
        if history["system"] is None
        else json.dumps([_part(history["system"])]),
        "gen_ai.input.messages": json.dumps([_message(*each) for each in asked]) if asked else None,
        "gen_ai.output.messages": None
        if final is None or final["output"] is None
        else json.dumps([_message("assistant", final["output"], final["finish_reason"])]),
        "error.type": error["code"] if error else None,
        "helixq.status": history["status"],
        "helixq.owner": history["owner"],
        "helixq.rounds": history["rounds"],
        "helixq.run": history["run"],
        "helixq.replay_of": history["replay_of"],
        "helixq.model.digest": history["model"],
        "helixq.digest": history["digest"],
        **{f"helixq.metadata.{name}": text for name, text in (history["metadata"] or {}).items()},
    }


def of_attempt(attempt: Mapping[str, Any]) -> dict[str, Value]:
    """Return what is said of an attempt: a request to a model."""
    worker, output, reason = attempt["worker"], attempt["output"], attempt["finish_reason"]
    adapter = worker.get("adapters", {}).get(attempt["role"], {})
    return {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": PROVIDER,
        "gen_ai.request.model": MODEL,
        "gen_ai.response.model": worker.get("base", {}).get("name", MODEL),
        "gen_ai.output.type": "text",
        "gen_ai.request.temperature": float(attempt["temperature"]),
        "gen_ai.request.top_k": attempt["top_k"],
        "gen_ai.request.top_p": float(attempt["top_p"]),
        "gen_ai.request.max_tokens": attempt["max_output_tokens"],
        "gen_ai.request.seed": attempt["seed"],
        "gen_ai.usage.input_tokens": attempt["prompt_tokens"],
        "gen_ai.usage.output_tokens": attempt["output_tokens"],
        "gen_ai.response.finish_reasons": None if reason is None else [reason],
        "gen_ai.input.messages": None
        if attempt["prompt"] is None
        else json.dumps([_message("user", attempt["prompt"])]),
        "gen_ai.output.messages": None
        if output is None
        else json.dumps([_message("assistant", output, reason)]),
        "error.type": attempt["status"] if attempt["status"] in FAILED else None,
        "helixq.role": attempt["role"],
        "helixq.round": attempt["round"],
        "helixq.run": attempt["run"],
        "helixq.attempt": attempt["number"],
        "helixq.status": attempt["status"],
        "helixq.worker.id": worker["id"],
        "helixq.base.digest": worker.get("base", {}).get("digest"),
        "helixq.adapter.name": adapter.get("name"),
        "helixq.adapter.digest": adapter.get("digest"),
        **_of_server(attempt.get("server")),
    }


def of_message(job_id: str, attempt: Mapping[str, Any]) -> dict[str, Value]:
    """Return what is said of the message that brought a stage to its worker."""
    queued_at, started_at = (
        None if time is None else dt.datetime.fromisoformat(time)
        for time in (attempt["queued_at"], attempt["started_at"])
    )
    waited = None if queued_at is None or started_at is None else started_at - queued_at
    return {
        "messaging.system": MESSAGING,
        "messaging.destination.name": QUEUE,
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.message.conversation_id": job_id,
        "helixq.role": attempt["role"],
        "helixq.worker.id": attempt["worker"]["id"],
        # Waiting is no part of the span.
        "helixq.queue_time": None if waited is None else waited.total_seconds(),
    }


def _of_server(url: str | None) -> dict[str, Value]:
    """Return where an engine elsewhere is; nothing if the engine is in the worker."""
    if url is None:
        return {}
    address = urlsplit(url)
    return {
        "server.address": address.hostname,
        "server.port": address.port or _PORTS.get(address.scheme),
    }


def last(history: Mapping[str, Any], role: str) -> int | None:
    """Return the number of the attempt with the last text of a role; None if there is none."""
    done = [n for n, a in enumerate(history["attempts"]) if a["status"] == "finished"]
    return next((n for n in reversed(done) if history["attempts"][n]["role"] == role), None)


def _message(role: str, text: str, finish_reason: str | None = None) -> dict[str, Any]:
    message: dict[str, Any] = {"role": role, "parts": [_part(text)]}
    return message if finish_reason is None else {**message, "finish_reason": finish_reason}


def _part(text: str) -> dict[str, str]:
    return {"type": "text", "content": text}
