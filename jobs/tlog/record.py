"""Records of jobs, reviews and erasures: what entries of the log have the digests of.

A **record** is a history with a salted hash in place of each text, so that a text can be erased and the record
remains. Once a text was erased, the history has `jobs.tlog.salted.erased` in its place, with the hash.

Records name their fields: a history may get new ones, and what was recorded without them still verifies.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jobs.tlog.canonical import canonical
from jobs.tlog.salted import Salts, is_erased, text_hash

#: The fields of a record that are recorded as they are. These lists are the format of signed records, so nothing derives
#: them: a field that comes later is `_OPTIONAL`.
_PLAIN = (
    "id",
    "owner",
    "key",
    "status",
    "rounds",
    "priority",
    "background",
    "replay_of",
    "model",
    "run",
    "created_at",
    "started_at",
    "finished_at",
    "deadline_at",
    "context",
    "previous_response_id",
    "temperature",
    "top_k",
    "top_p",
    "max_output_tokens",
    "seed",
    "restarts",
)
#: Those that are texts, or have texts of a client.
_TEXTS = ("question", "system", "turns", "input_items", "options", "metadata")
_ATTEMPT_PLAIN = (
    "position",
    "role",
    "round",
    "run",
    "number",
    "status",
    "temperature",
    "top_k",
    "top_p",
    "max_output_tokens",
    "seed",
    "prompt_tokens",
    "output_tokens",
    "finish_reason",
    "queued_at",
    "started_at",
    "first_token_at",
    "finished_at",
    "worker",
)
_ATTEMPT_TEXTS = ("prompt", "output", "error")
#: Fields that are recorded as they are, if they have a value: older records did not know them.
_OPTIONAL = ("retries", "traceparent")
_ATTEMPT_OPTIONAL = ("server",)
#: Texts that are in a record unless they are null.
_OPTIONAL_TEXTS = ("stop",)
_REVIEW_PLAIN = ("id", "number", "key", "created_at", "critique", "regeneration")
_REVIEW_TEXTS = ("reviewer", "corrected_answer", "tags", "note")
_ERASURE_PLAIN = ("at", "by", "key", "texts")


def texts(history: Mapping[str, Any]) -> dict[str, Any]:
    """Return the texts of a job's record that are not null, by their JSON pointers into the history."""
    holders: list[tuple[str, Mapping[str, Any], tuple[str, ...]]] = [("", history, _names(history))]
    if history["batch"]:
        holders.append(("/batch", history["batch"], ("custom_id",)))
    if history["error"]:
        holders.append(("/error", history["error"], ("message",)))
    for number, attempt in enumerate(history["attempts"]):
        holders.append((f"/attempts/{number}", attempt, _ATTEMPT_TEXTS))
    return _present(holders)


def _names(history: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of a job's texts in its record."""
    return (*_TEXTS, *(name for name in _OPTIONAL_TEXTS if history.get(name) is not None))


def review_texts(history: Mapping[str, Any]) -> dict[str, Any]:
    """Return the texts of a job's reviews that are not null, by their JSON pointers into the history."""
    return _present(
        (f"/reviews/{number}", review, _REVIEW_TEXTS)
        for number, review in enumerate(history["reviews"])
    )


def _present(
    holders: Iterable[tuple[str, Mapping[str, Any], tuple[str, ...]]],
) -> dict[str, Any]:
    return {
        f"{prefix}/{name}": holder[name]
        for prefix, holder, names in holders
        for name in names
        if holder[name] is not None
    }


def without_erased(
    history: Mapping[str, Any], empty: Callable[[str], Any]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return a history with other values in the place of erased texts, and the hashes of these texts.

    Args:
        history: of a job.
        empty: returns the value for a field by its name.

    Returns:
        the history, and the hashes by the texts' JSON pointers.
    """
    hashes: dict[str, str] = {}

    def replaced(holder: Mapping[str, Any], pointer: str) -> dict[str, Any]:
        found = {f"{pointer}/{n}": v["hash"] for n, v in holder.items() if is_erased(v)}
        hashes.update(found)
        return {n: empty(n) if is_erased(v) else v for n, v in holder.items()}

    whole = replaced(history, "")
    for name in ("batch", "error"):
        if whole[name]:
            whole[name] = replaced(whole[name], f"/{name}")
    for name in ("attempts", "reviews"):
        whole[name] = [replaced(one, f"/{name}/{i}") for i, one in enumerate(whole[name])]
    return whole, hashes


def claimed_entry(record: Mapping[str, Any]) -> int | None:
    """Return the index of the log's entry that a history, a review or an erasure claims; None if it claims none."""
    return (record["log"] or {}).get("index")


def misfit(history: Mapping[str, Any]) -> str | None:
    """Return what of a job's reviews and erasures does not fit its history; None if all of it does."""
    reviews, erasures = history["reviews"], history["erasures"]
    if [review["number"] for review in reviews] != list(range(len(reviews))):
        return "a review was removed or reordered"
    own = texts(history)
    named = [text for erasure in erasures for text in erasure["texts"]]
    erased = [p for p, value in {**own, **review_texts(history)}.items() if is_erased(value)]
    if sorted(erased) != sorted(named):
        return "its erased texts are not those that erasures name"
    last = erasures[-1]["at"] if erasures else None
    if history["erased_at"] != last:
        return f"it was last erased {last}"
    salts = history["log"].get("salts")
    if salts is not None and salts.keys() != own.keys() - set(erased):
        return "its salts are not those of its texts"
    ratings = [r["regeneration"] for r in reviews if r["regeneration"] is not None]
    if history["rating"] != (ratings[-1] if ratings else None):
        return "its rating is not that of its last review"
    return None


def record(history: Mapping[str, Any], salts: Salts) -> dict[str, Any]:
    """Return the record of an ended job.

    Args:
        history: of the job, as the API shows it.
        salts: the job's.

    Raises:
        KeyError: the history lacks a field, or a text without a salt is no erased one.
    """
    batch, error = history["batch"], history["error"]
    return {
        **{name: history[name] for name in _PLAIN},
        **_hashed(salts, "", history, _names(history)),
        "batch": batch and {"id": batch["id"], **_hashed(salts, "/batch", batch, ("custom_id",))},
        "error": error and {"code": error["code"], **_hashed(salts, "/error", error, ("message",))},
        **_present_only(history, _OPTIONAL),
        "attempts": [
            {
                **{name: attempt[name] for name in _ATTEMPT_PLAIN},
                **_present_only(attempt, _ATTEMPT_OPTIONAL),
                **_hashed(salts, f"/attempts/{number}", attempt, _ATTEMPT_TEXTS),
            }
            for number, attempt in enumerate(history["attempts"])
        ],
    }


def digest(history: Mapping[str, Any], salts: Salts) -> str:
    """Return the digest of a job's record: ``sha256:`` and the hash of its canonical JSON.

    Raises:
        KeyError: as `record`.
    """
    return _digest(record(history, salts))


def review_digest(job_id: str, review: Mapping[str, Any], salts: Salts) -> str:
    """Return the digest of a review's record.

    Args:
        job_id: of the job.
        review: as the job's history shows it.
        salts: the review's. Its pointers begin at the review: ``/note``.

    Raises:
        KeyError: as `record`.
    """
    plain = {name: review[name] for name in _REVIEW_PLAIN}
    return _digest({"job": job_id, **plain, **_hashed(salts, "", review, _REVIEW_TEXTS)})


def erasure_digest(
    job_id: str, erasure: Mapping[str, Any], hashes: Mapping[str, str | None]
) -> str:
    """Return the digest of an erasure's record. The hashes of the texts are salted, and so it is too.

    Args:
        job_id: of the job.
        erasure: as the job's history shows it.
        hashes: of the erased texts, by their JSON pointers.
    """
    plain = {name: erasure[name] for name in _ERASURE_PLAIN}
    return _digest({"job": job_id, **plain, "hashes": [hashes.get(p) for p in erasure["texts"]]})


def _digest(record: dict[str, Any]) -> str:
    return f"sha256:{hashlib.sha256(canonical(record)).hexdigest()}"


def _hashed(
    salts: Salts, prefix: str, values: Mapping[str, Any], names: Iterable[str]
) -> dict[str, str | None]:
    return {name: text_hash(salts, f"{prefix}/{name}", values[name]) for name in names}


def _present_only(values: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Return fields that are there; those without a value are left out, as in records that did not know them."""
    return {name: values[name] for name in names if values.get(name)}
