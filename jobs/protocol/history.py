"""The history of a job: everything that is stored about it, for audits."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from functools import partial
from typing import Any

from jobs.models import Attempt, Erasure, Job, Review, Status
from jobs.pipeline import Role, sampling_values
from jobs.search.query import Node
from jobs.search.snippets import Highlighter, Snippet
from jobs.times import rfc3339
from jobs.tlog.note import NoteError
from jobs.tlog.proof import Proof
from jobs.tlog.record import digest, erasure_digest, review_digest
from jobs.tlog.salted import Salts, erased, salts_of
from jobs.use_cases.searching import Listed

#: What the texts of the roles are called in snippets.
TEXTS = {Role.ACTOR: "answer", Role.CRITIC: "critique", Role.REGENERATOR: "regeneration"}
#: The maximum number of snippets of a job.
MAX_SNIPPETS = 2


def history(job: Job) -> dict[str, Any]:
    """Return the history of a job. In the place of each erased text it has what `erased` returns.

    Args:
        job: with its input items, its attempts and their workers, its reviews and its erasures loaded.
    """
    text = _Texts(job)
    record = {
        **summary(job),
        "system": text("/system", job.system),
        "context": job.context,
        "turns": text("/turns", job.turns),
        "input_items": text("/input_items", job.input_items),
        "previous_response_id": job.previous_response_id,
        "options": text("/options", job.options or {}),
        **sampling_values(job),
        "stop": text("/stop", job.stop),
        "background": job.background,
        "traceparent": job.traceparent,
        "deadline_at": rfc3339(job.deadline_at),
        "restarts": [_restart(restart) for restart in job.restarts],
        "retries": [_retry(retry) for retry in job.retries],
        "attempts": [
            _attempt(attempt, f"/attempts/{number}", text)
            for number, attempt in enumerate(job.attempts)
        ],
        "origin": origin(job.origin_proof),
        "reviews": [_review(job, review, text) for review in job.reviews],
        "erasures": [_erasure(job, erasure) for erasure in job.erasures],
    }
    log = _log(job)  # An imported job has its salt before it has its place.
    if log is None:
        return {**record, "digest": None, "log": None}
    return {**record, "digest": _of(digest, record, log), "log": log}


def summary(job: Job) -> dict[str, Any]:
    """Return what a list of histories says about a job."""
    text = _Texts(job)
    error, batch = None, None
    if job.error_code:
        message = text("/error/message", job.error_message)
        error = {"code": job.error_code, "message": message}
    if job.batch_id:
        batch = {"id": job.batch_id, "custom_id": text("/batch/custom_id", job.custom_id)}
    return {
        "id": job.id,
        "owner": job.owner,
        "key": job.key_id,
        "status": job.status.value,
        "question": text("/question", job.question),
        "rounds": job.rounds,
        "priority": job.priority,
        "metadata": text("/metadata", job.metadata_),
        "replay_of": job.replay_of,
        "batch": batch,
        "model": job.model and f"sha256:{job.model}",
        "run": job.run,
        "created_at": rfc3339(job.created_at),
        "started_at": rfc3339(job.started_at),
        "finished_at": rfc3339(job.finished_at),
        "erased_at": rfc3339(job.erased_at),
        "rating": job.rating,
        "error": error,
    }


def accepted(job: Job) -> dict[str, Any]:
    """Return what a list of histories said about a job when it was accepted."""
    unset = ("model", "started_at", "finished_at", "erased_at", "rating", "error")
    return {**summary(job), "status": Status.QUEUED.value, "run": 1, **dict.fromkeys(unset)}


def page(jobs: list[Listed], query: Node | None) -> list[dict[str, Any]]:
    """Return a page of a list of histories.

    Args:
        jobs: of the page.
        query: the full-text query that they match, if there was one.
    """
    highlighter = None if query is None else Highlighter(query)
    return [_listed(listed, highlighter) for listed in jobs]


def _listed(listed: Listed, highlighter: Highlighter | None) -> dict[str, Any]:
    job, document, _ = listed
    return {
        **summary(job),
        "critique_rating": document and document.details.get("critique_rating"),
        "max_attempts": document and document.attempts,
        "changed": None
        if document is None or document.changed is None
        else round(document.changed, 4),
        "duration": document and document.duration,
        "adapters": document and document.details["adapters"],
        "workers": document and document.details["workers"],
        "snippets": None if highlighter is None else _snippets(listed, highlighter),
    }


def _snippets(listed: Listed, highlighter: Highlighter) -> list[dict[str, Any]]:
    """Return where a job matches: the first texts that do, the question and the last outputs first."""
    texts: list[tuple[str, int | None, str]] = [("question", None, listed.job.question)]
    texts += [(TEXTS[a.role], a.stage_index, a.output or "") for a in listed.outputs]
    found: list[dict[str, Any]] = []
    for name, position, text in texts:
        snippet = highlighter.snippet(text)
        if snippet is not None:
            found.append({"field": name, "position": position, **_snippet(snippet)})
            if len(found) == MAX_SNIPPETS:
                break
    return found


def _snippet(snippet: Snippet) -> dict[str, Any]:
    parts = [{"text": text, "match": match} for text, match in snippet.parts]
    return {"start": snippet.start, "parts": parts}


class _Texts:
    """The texts of a job's history, with the erased ones replaced."""

    def __init__(self, job: Job) -> None:
        self._erased = job.erased or {}

    def __call__(self, pointer: str, value: Any) -> Any:
        """Return a text, or what stands for it if it was erased."""
        if value is None or pointer not in self._erased:
            return value
        return erased(self._erased[pointer])


def _attempt(attempt: Attempt, pointer: str, text: _Texts) -> dict[str, Any]:
    return {
        "position": attempt.stage_index,
        "role": attempt.role.value,
        "round": attempt.round,
        "run": attempt.run,
        "number": attempt.number,
        "status": attempt.status.value,
        "prompt": text(f"{pointer}/prompt", attempt.prompt),
        "output": text(f"{pointer}/output", attempt.output),
        **sampling_values(attempt),
        "prompt_tokens": attempt.prompt_tokens,
        "output_tokens": attempt.output_tokens,
        "finish_reason": attempt.finish_reason,
        "queued_at": rfc3339(attempt.queued_at),
        "started_at": rfc3339(attempt.started_at),
        "first_token_at": rfc3339(attempt.first_token_at),
        "finished_at": rfc3339(attempt.finished_at),
        "error": text(f"{pointer}/error", attempt.error),
        "server": attempt.server,
        "worker": {
            "id": attempt.worker.id,
            "host": attempt.worker.host,
            "pid": attempt.worker.pid,
            "model": f"sha256:{attempt.worker.model}",
            **attempt.worker.runtime,
        },
    }


def _review(job: Job, review: Review, text: _Texts) -> dict[str, Any]:
    pointer = f"/reviews/{review.number}"
    record = {
        "id": review.id,
        "number": review.number,
        "reviewer": text(f"{pointer}/reviewer", review.reviewer),
        "key": review.key_id,
        "created_at": rfc3339(review.created_at),
        "critique": review.critique,
        "regeneration": review.regeneration,
        "corrected_answer": text(f"{pointer}/corrected_answer", review.corrected_answer),
        "tags": text(f"{pointer}/tags", review.tags),
        "note": text(f"{pointer}/note", review.note),
    }
    log = _log(review)
    if log is None:
        return {**record, "digest": None, "log": None}
    return {**record, "digest": _of(partial(review_digest, job.id), record, log), "log": log}


def _erasure(job: Job, erasure: Erasure) -> dict[str, Any]:
    record = {
        "at": rfc3339(erasure.created_at),
        "by": erasure.erased_by,
        "key": erasure.key_id,
        "texts": erasure.texts,
    }
    return {
        **record,
        "digest": erasure_digest(job.id, record, job.erased or {}),
        "log": {"index": erasure.log_index},
    }


def _log(row: Job | Review) -> dict[str, Any] | None:
    """Return a record's entry in the log, and its salts; None if it has no salts."""
    if row.log_salts is not None:
        return {"index": row.log_index, "salts": row.log_salts}
    if row.log_salt is None:
        return None
    return {"index": row.log_index, "salt": row.log_salt.hex()}


def _of(
    digest: Callable[[dict[str, Any], Salts], str], record: dict[str, Any], log: dict[str, Any]
) -> str | None:
    """Return a digest; None if the salts are not those of the texts, because somebody changed the database."""
    try:
        return digest(record, salts_of(log))
    except (AttributeError, KeyError, TypeError, ValueError):
        return None


def _restart(restart: dict[str, Any]) -> dict[str, Any]:
    return {
        "run": restart["run"],
        "at": rfc3339(dt.datetime.fromisoformat(restart["at"])),
        "model_before": f"sha256:{restart['model']}",
        "reason": restart["reason"],
    }


def _retry(retry: dict[str, Any]) -> dict[str, Any]:
    return {
        "at": rfc3339(dt.datetime.fromisoformat(retry["at"])),
        "finished_at": rfc3339(dt.datetime.fromisoformat(retry["finished_at"])),
        "code": retry["code"],
        "entry": retry["entry"],
    }


def origin(proof: str | None) -> dict[str, Any] | None:
    """Return where an imported job ended: the log's name, and the index of its entry there."""
    try:
        parsed = proof and Proof.parse(proof)
    except NoteError:  # Somebody changed the row, as `helixq jobs verify` says.
        return None
    return {"log": parsed.log, "index": parsed.index} if isinstance(parsed, Proof) else None
