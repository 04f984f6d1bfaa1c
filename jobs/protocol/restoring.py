"""From an exported history back to the job: the inverse of `history`."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping
from typing import Any

from jobs.models import Attempt, AttemptStatus, Erasure, Job, Review, Status, Worker
from jobs.pipeline import Role
from jobs.protocol.history import history, origin
from jobs.tlog.exported import PROOFS, Checked, HistoryError
from jobs.tlog.record import without_erased
from jobs.tlog.salted import Salts, salts_of

#: Fields that say where a history is from, and not what it is.
OF_THE_LOG = frozenset({"digest", "log", "origin"})
#: What an export adds to a history.
_ADDED = frozenset({"proof", "origin_proof", *PROOFS})
#: The entries of reviews and erasures, which are of one log too.
_PLACE = re.compile(r"/(reviews|erasures)/\d+/log/index")
#: What the columns of erased texts have, if it is not an empty text.
_EMPTY: dict[str, Any] = {"turns": [], "input_items": [], "options": {}, "metadata": {}, "tags": []}
_WORKER = ("id", "host", "pid", "model")


def restore(exported: Mapping[str, Any], checked: Checked) -> Job:
    """Return the job of an exported history, as it is to be stored.

    Args:
        exported: a line of an export, of an ended job.
        checked: what `jobs.tlog.exported.check` found.

    Raises:
        HistoryError: it is no history, or cannot be stored as it is.
    """
    try:
        return _restore(exported, checked)
    except HistoryError:
        raise
    except KeyError as error:
        raise HistoryError(f"it lacks the field `{error.args[0]}`") from error
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise HistoryError(f"a field has a wrong type or value: {error}") from error


def _restore(exported: Mapping[str, Any], checked: Checked) -> Job:
    if exported["origin"] != origin(exported["origin_proof"]):
        raise HistoryError("`origin` is not that of its proof")
    plain, hashes = without_erased(exported, lambda name: _EMPTY.get(name, ""))
    job = _job(plain)
    job.erased = hashes or None
    job.log_salt, job.log_salts = _salts(checked.salts)
    if not job.status.final or any(a.status is AttemptStatus.RUNNING for a in job.attempts):
        raise HistoryError("it has an entry in a log, and has not ended")
    told = {name: value for name, value in exported.items() if name not in _ADDED}
    if (pointer := difference(told, history(job))) is not None:
        raise HistoryError(f"`{pointer}` cannot be stored as it is")
    job.origin_proof = checked.origin.text
    for review, proof in zip(job.reviews, checked.review_origins, strict=True):
        review.origin_proof = proof
    for erasure, proof in zip(job.erasures, checked.erasure_origins, strict=True):
        erasure.origin_proof = proof
    return job


def difference(one: Any, other: Any, pointer: str = "") -> str | None:
    """Return where two histories differ first, as a JSON pointer, but for what the log says of them."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        names = [*one, *(name for name in other if name not in one)]
        for name in names:
            if not pointer and name in OF_THE_LOG:
                continue
            below = f"{pointer}/{name}"
            if _PLACE.fullmatch(below):
                continue
            if name not in one or name not in other:
                return below
            if (found := difference(one[name], other[name], below)) is not None:
                return found
        return None
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for number, (item, same) in enumerate(zip(one, other, strict=True)):
            if (found := difference(item, same, f"{pointer}/{number}")) is not None:
                return found
        return None
    # NaN is not equal to itself.
    return None if one == other or (one != one and other != other) else pointer


def disagreement(there: Job, other: Job) -> str | None:
    """Return why a stored job is not the one of a file; None if it is, and has all that the file says of it.

    A stored job may have more reviews and erasures: they came later. Texts that were erased here have the digests
    of those in the file.

    Args:
        there: the stored job, with all that its history has.
        other: that of the file.
    """
    stored, told = history(there), history(other)
    for name in ("reviews", "erasures"):
        found = [each["digest"] for each in stored[name]]
        for number, each in enumerate(told[name]):
            if number == len(found):
                return f"lacks the file's `/{name}/{number}`"
            if each["digest"] != found[number]:
                return f"its `/{name}/{number}` differs"
        stored.pop(name), told.pop(name)
    if stored["digest"] is not None and stored["digest"] == told["digest"]:
        return None
    for name in ("erased_at", "rating"):
        stored.pop(name), told.pop(name)
    pointer = difference(stored, told)
    return None if pointer is None else f"its `{pointer}` differs"


def _job(told: Mapping[str, Any]) -> Job:
    batch, error, attempts = told["batch"], told["error"], told["attempts"]
    workers: dict[str, Worker] = {}
    created_at = _time(told["created_at"])
    job = Job(
        id=_text(told["id"]),
        owner=_text(told["owner"]),
        key_id=told["key"],
        status=Status(told["status"]),
        question=_text(told["question"]),
        system=_text(told["system"]),
        input_items=told["input_items"],
        turns=told["turns"],
        previous_response_id=told["previous_response_id"],
        options=told["options"] or None,
        temperature=told["temperature"],
        top_k=told["top_k"],
        top_p=told["top_p"],
        max_output_tokens=told["max_output_tokens"],
        seed=told["seed"],
        rounds=told["rounds"],
        priority=told["priority"],
        background=told["background"],
        metadata_=told["metadata"],
        batch_id=batch and batch["id"],
        custom_id=batch and batch["custom_id"],
        replay_of=told["replay_of"],
        traceparent=told["traceparent"],
        created_at=created_at,
        started_at=_time(told["started_at"]),
        finished_at=_time(told["finished_at"]),
        deadline_at=_time(told["deadline_at"]),
        model=_digest(told["model"]),
        run=told["run"],
        restarts=[_restart(restart) for restart in told["restarts"]],
        retries=[_retry(retry) for retry in told["retries"]],
        error_code=error and error["code"],
        error_message=error and error["message"],
        erased_at=_time(told["erased_at"]),
        rating=told["rating"],
        # What leads a job through the queue, and means nothing after its end.
        ready_at=created_at,
        published_at=created_at,
        lease_token=len(attempts),
        attempts=[_attempt(number, each, workers) for number, each in enumerate(attempts, 1)],
        reviews=[_review(review) for review in told["reviews"]],
        erasures=[_erasure(erasure) for erasure in told["erasures"]],
    )
    job.stage_index = len(job.finished)
    return job


def _attempt(number: int, told: Mapping[str, Any], workers: dict[str, Worker]) -> Attempt:
    worker = _worker(told["worker"])
    return Attempt(
        stage_index=told["position"],
        role=Role(told["role"]),
        round=told["round"],
        run=told["run"],
        number=told["number"],
        lease_token=number,
        worker=workers.setdefault(worker.id, worker),
        status=AttemptStatus(told["status"]),
        prompt=_text(told["prompt"]),
        output=told["output"],
        temperature=told["temperature"],
        top_k=told["top_k"],
        top_p=told["top_p"],
        max_output_tokens=told["max_output_tokens"],
        seed=told["seed"],
        prompt_tokens=told["prompt_tokens"],
        output_tokens=told["output_tokens"],
        finish_reason=told["finish_reason"],
        queued_at=_time(told["queued_at"]),
        started_at=_time(told["started_at"]),
        first_token_at=_time(told["first_token_at"]),
        finished_at=_time(told["finished_at"]),
        error=told["error"],
        server=told["server"],
    )


def _review(told: Mapping[str, Any]) -> Review:
    salt, salts = _salts(salts_of(told["log"]))
    return Review(
        id=_text(told["id"]),
        number=told["number"],
        reviewer=_text(told["reviewer"]),
        key_id=told["key"],
        critique=told["critique"],
        regeneration=told["regeneration"],
        corrected_answer=told["corrected_answer"],
        tags=told["tags"],
        note=told["note"],
        created_at=_time(told["created_at"]),
        log_salt=salt,
        log_salts=salts,
    )


def _erasure(told: Mapping[str, Any]) -> Erasure:
    return Erasure(
        texts=told["texts"],
        erased_by=_text(told["by"]),
        key_id=told["key"],
        created_at=_time(told["at"]),
    )


def _salts(salts: Salts) -> tuple[bytes | None, dict[str, str] | None]:
    """Return the columns of salts: the one that all come from, or those of the texts that are left."""
    if isinstance(salts, bytes):
        return salts, None
    return None, {pointer: salt.hex() for pointer, salt in salts.items()}


def _worker(told: Mapping[str, Any]) -> Worker:
    return Worker(
        id=_text(told["id"]),
        host=_text(told["host"]),
        pid=told["pid"],
        model=_digest(told["model"]),
        runtime={name: value for name, value in told.items() if name not in _WORKER},
    )


def _restart(told: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "run": told["run"],
        "at": dt.datetime.fromisoformat(told["at"]).isoformat(),
        "model": _digest(told["model_before"]),
        "reason": told["reason"],
    }


def _retry(told: Mapping[str, Any]) -> dict[str, Any]:
    times = {
        name: dt.datetime.fromisoformat(told[name]).isoformat() for name in ("at", "finished_at")
    }
    return {**times, "code": told["code"], "entry": told["entry"]}


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _time(value: str | None) -> dt.datetime | None:
    return None if value is None else dt.datetime.fromisoformat(value).astimezone(dt.UTC)


def _digest(value: str | None) -> str | None:
    return None if value is None else value.removeprefix("sha256:")
