"""From an exported history back to the job: the inverse of `history`."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping
from typing import Any

from jobs.models import Attempt, AttemptStatus, Erasure, Job, Review, Status, Worker
from jobs.pipeline import SAMPLING_PARAMETERS, Role
from jobs.protocol import restorable
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
_EMPTY: dict[str, Any] = {
    "turns": [],
    "input_items": [],
    "options": {},
    "stop": [],
    "metadata": {},
    "tags": [],
}
#: Fields that histories of earlier versions lack.
_NEW = {"stop": None}
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
    exported = {**_NEW, **exported}
    plain, hashes = without_erased(exported, lambda name: _EMPTY.get(name, ""))
    job = _job(plain)
    job.erased = hashes or None
    job.log_salt, job.log_salts = _salts(checked.salts)
    if not job.status.final or any(a.status is AttemptStatus.RUNNING for a in job.attempts):
        raise HistoryError("it has an entry in a log, and has not ended")
    given = {name: value for name, value in exported.items() if name not in _ADDED}
    if (pointer := difference(given, history(job))) is not None:
        raise HistoryError(f"`{pointer}` cannot be stored as it is")
    restorable.check(exported)
    job.origin_proof = checked.origin.text
    for review, proof in zip(job.reviews, checked.review_origins, strict=True):
        review.origin_proof = proof
    for erasure, proof in zip(job.erasures, checked.erasure_origins, strict=True):
        erasure.origin_proof = proof
    return job


def difference(one: Any, other: Any, pointer: str = "") -> str | None:
    """Return the JSON pointer of the first difference of two histories, except for their places in the log."""
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
    """Return how a stored job contradicts that of a file; None if it has everything that the file has.

    A stored job may have more reviews and erasures: they came later. Texts that were erased here have the digests
    of those in the file.

    Args:
        there: the stored job, with all that its history has.
        other: that of the file.
    """
    stored, given = history(there), history(other)
    for name in ("reviews", "erasures"):
        found = [each["digest"] for each in stored[name]]
        for number, each in enumerate(given[name]):
            if number == len(found):
                return f"lacks the file's `/{name}/{number}`"
            if each["digest"] != found[number]:
                return f"its `/{name}/{number}` differs"
        stored.pop(name), given.pop(name)
    if stored["digest"] is not None and stored["digest"] == given["digest"]:
        return None
    for name in ("erased_at", "rating"):
        stored.pop(name), given.pop(name)
    pointer = difference(stored, given)
    return None if pointer is None else f"its `{pointer}` differs"


def _job(data: Mapping[str, Any]) -> Job:
    batch, error, attempts = data["batch"], data["error"], data["attempts"]
    workers: dict[str, Worker] = {}
    created_at = _time(data["created_at"])
    job = Job(
        id=_text(data["id"]),
        owner=_text(data["owner"]),
        key_id=data["key"],
        status=Status(data["status"]),
        question=_text(data["question"]),
        system=_text(data["system"]),
        input_items=data["input_items"],
        turns=data["turns"],
        previous_response_id=data["previous_response_id"],
        options=data["options"] or None,
        **{name: data[name] for name in SAMPLING_PARAMETERS},
        stop=data["stop"],
        rounds=data["rounds"],
        priority=data["priority"],
        background=data["background"],
        metadata_=data["metadata"],
        batch_id=batch and batch["id"],
        custom_id=batch and batch["custom_id"],
        replay_of=data["replay_of"],
        traceparent=data["traceparent"],
        created_at=created_at,
        started_at=_time(data["started_at"]),
        finished_at=_time(data["finished_at"]),
        deadline_at=_time(data["deadline_at"]),
        model=_digest(data["model"]),
        run=data["run"],
        restarts=[_restart(restart) for restart in data["restarts"]],
        retries=[_retry(retry) for retry in data["retries"]],
        error_code=error and error["code"],
        error_message=error and error["message"],
        erased_at=_time(data["erased_at"]),
        rating=data["rating"],
        # What leads a job through the queue, and means nothing after its end.
        ready_at=created_at,
        published_at=created_at,
        lease_token=len(attempts),
        attempts=[_attempt(number, each, workers) for number, each in enumerate(attempts, 1)],
        reviews=[_review(review) for review in data["reviews"]],
        erasures=[_erasure(erasure) for erasure in data["erasures"]],
    )
    job.stage_index = len(job.finished)
    return job


def _attempt(number: int, data: Mapping[str, Any], workers: dict[str, Worker]) -> Attempt:
    worker = _worker(data["worker"])
    return Attempt(
        stage_index=data["position"],
        role=Role(data["role"]),
        round=data["round"],
        run=data["run"],
        number=data["number"],
        lease_token=number,
        worker=workers.setdefault(worker.id, worker),
        status=AttemptStatus(data["status"]),
        prompt=_text(data["prompt"]),
        output=data["output"],
        **{name: data[name] for name in SAMPLING_PARAMETERS},
        prompt_tokens=data["prompt_tokens"],
        output_tokens=data["output_tokens"],
        finish_reason=data["finish_reason"],
        queued_at=_time(data["queued_at"]),
        started_at=_time(data["started_at"]),
        first_token_at=_time(data["first_token_at"]),
        finished_at=_time(data["finished_at"]),
        error=data["error"],
        server=data["server"],
    )


def _review(data: Mapping[str, Any]) -> Review:
    salt, salts = _salts(salts_of(data["log"]))
    return Review(
        id=_text(data["id"]),
        number=data["number"],
        reviewer=_text(data["reviewer"]),
        key_id=data["key"],
        critique=data["critique"],
        regeneration=data["regeneration"],
        corrected_answer=data["corrected_answer"],
        tags=data["tags"],
        note=data["note"],
        created_at=_time(data["created_at"]),
        log_salt=salt,
        log_salts=salts,
    )


def _erasure(data: Mapping[str, Any]) -> Erasure:
    return Erasure(
        texts=data["texts"],
        erased_by=_text(data["by"]),
        key_id=data["key"],
        created_at=_time(data["at"]),
    )


def _salts(salts: Salts) -> tuple[bytes | None, dict[str, str] | None]:
    """Return the columns of salts: the one that all come from, or those of the texts that are left."""
    if isinstance(salts, bytes):
        return salts, None
    return None, {pointer: salt.hex() for pointer, salt in salts.items()}


def _worker(data: Mapping[str, Any]) -> Worker:
    return Worker(
        id=_text(data["id"]),
        host=_text(data["host"]),
        pid=data["pid"],
        model=_digest(data["model"]),
        runtime={name: value for name, value in data.items() if name not in _WORKER},
    )


def _restart(data: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "run": data["run"],
        "at": dt.datetime.fromisoformat(data["at"]).isoformat(),
        "model": _digest(data["model_before"]),
        "reason": data["reason"],
    }


def _retry(data: Mapping[str, Any]) -> dict[str, Any]:
    times = {
        name: dt.datetime.fromisoformat(data[name]).isoformat() for name in ("at", "finished_at")
    }
    return {**times, "code": data["code"], "entry": data["entry"]}


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a text")
    return value


def _time(value: str | None) -> dt.datetime | None:
    return None if value is None else dt.datetime.fromisoformat(value).astimezone(dt.UTC)


def _digest(value: str | None) -> str | None:
    return None if value is None else value.removeprefix("sha256:")
