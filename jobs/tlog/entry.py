"""What the log records: entries, and the record of a job that an entry has the digest of.

A **record** is a job's history with a salted hash in place of each text, so that a text can be erased and the
record remains. An **entry** has the record's digest and not the record. So it is small however many attempts a
job has (an entry bundle gives an entry 65,535 bytes), and it tells readers of the log nothing: not the job's
id, nor its owner, nor whether two jobs are alike.

Once a text was erased, a history has `erased` in its place, with the hash. The salt that all own salts come
from is gone then, so that nobody can try out what the text was, and those of the other texts are kept.

Records name their fields: a history may get new ones, and what was recorded without them still verifies.
All JSON is canonical (RFC 8785).
"""

from __future__ import annotations

import hashlib
import hmac
import json
import math
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import rfc8785

#: The types of entries: of an ended job, of one that was imported, and of what came later.
JOB = "helixq/job/v1"
IMPORT = "helixq/import/v1"
DELETION = "helixq/deletion/v1"
REVIEW = "helixq/review/v1"
ERASURE = "helixq/erasure/v1"
TYPES = (JOB, IMPORT, DELETION, REVIEW, ERASURE)

#: The secret of a record: one salt that the own salts of all texts come from, or once a text was erased, the
#: own salts of the others by their JSON pointers.
Salts = bytes | Mapping[str, bytes]

SALT_SIZE = 32
#: The largest integer that every JSON parser reads exactly. Larger ones are recorded as their digits.
MAX_INTEGER = 2**53 - 1
#: Between them, Python and JavaScript spell numbers that are not whole alike.
MIN_PLAIN, MAX_PLAIN = 1e-4, 1e15
#: Far less than Python's limit of recursion.
MAX_DEPTH = 200

#: The fields of a record that are recorded as they are.
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
_REVIEW_PLAIN = ("id", "number", "key", "created_at", "critique", "regeneration")
_REVIEW_TEXTS = ("reviewer", "corrected_answer", "tags", "note")
_ERASURE_PLAIN = ("at", "by", "key", "texts")


def canonical(value: Any) -> bytes:
    """Return a JSON value as RFC 8785 spells it.

    Some values that clients can send are beyond RFC 8785, and become texts: integers beyond ±(2^53 - 1) those of
    their digits, what Python's parser reads as NaN and Infinity those words, and a value that is nested more
    than `MAX_DEPTH` deep its JSON.
    """
    if isinstance(value, str):  # The standard library spells texts the same, and much faster.
        return json.dumps(value, ensure_ascii=False).encode()
    if _depth(value) > MAX_DEPTH:
        return canonical(json.dumps(value, sort_keys=True))
    odd: list[Any] = []
    exact = _exact(value, odd)
    if odd:
        return rfc8785.dumps(exact)
    # Of all else, the standard library has the same spelling, in a fifth of the time.
    return json.dumps(exact, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()


def new_salt() -> bytes:
    """Return the secret salt of a job."""
    return secrets.token_bytes(SALT_SIZE)


def own_salt(salts: Salts, pointer: str) -> bytes:
    """Return the own salt of a text: HMAC-SHA256(salt, pointer), so that one hash says nothing about another.

    Raises:
        KeyError: the text was erased, and its salt with it.
    """
    if isinstance(salts, bytes):
        return hmac.digest(salts, pointer.encode(), "sha256")
    return salts[pointer]


def text_hash(salts: Salts, pointer: str, value: Any) -> str | None:
    """Return the salted hash of a text (or another JSON value) of a record; None stays None.

    Args:
        salts: of the record.
        pointer: where the text is in the record: a JSON pointer (RFC 6901).
        value: the text, or what `erased` returned.
    """
    if value is None:
        return None
    if is_erased(value):
        return str(value["hash"])
    salted = own_salt(salts, pointer) + canonical(value)
    return f"sha256:{hashlib.sha256(salted).hexdigest()}"


def erased(text_hash: str) -> dict[str, Any]:
    """Return what a history has in the place of an erased text.

    No other value of a history is like it: in those that clients give, the members are texts, or have
    other names.
    """
    return {"erased": True, "hash": text_hash}


def is_erased(value: Any) -> bool:
    """Return whether a value of a history is that of an erased text."""
    return (
        isinstance(value, dict)
        and value.keys() == {"erased", "hash"}
        and value["erased"] is True
        and isinstance(value["hash"], str)
    )


def texts(history: Mapping[str, Any]) -> dict[str, Any]:
    """Return the texts of a job's record that are not null, by their JSON pointers into the history."""
    holders: list[tuple[str, Mapping[str, Any], tuple[str, ...]]] = [("", history, _TEXTS)]
    if history["batch"]:
        holders.append(("/batch", history["batch"], ("custom_id",)))
    if history["error"]:
        holders.append(("/error", history["error"], ("message",)))
    for number, attempt in enumerate(history["attempts"]):
        holders.append((f"/attempts/{number}", attempt, _ATTEMPT_TEXTS))
    return _present(holders)


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


def salts_of(log: Mapping[str, Any]) -> Salts:
    """Return the salts that a history names in ``log``, in hexadecimal.

    Raises:
        KeyError, TypeError, ValueError: it names none.
    """
    if "salts" in log:
        return {pointer: bytes.fromhex(salt) for pointer, salt in log["salts"].items()}
    return bytes.fromhex(log["salt"])


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
        **_hashed(salts, "", history, _TEXTS),
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


def recorded_as(history: Mapping[str, Any], entry: Mapping[str, Any]) -> str | None:
    """Return what of a job's history an entry records: ``history``, ``review N`` or ``erasure N``; None if nothing.

    Raises:
        KeyError, TypeError, ValueError: it is no history of a job that is in a log.
    """
    kind, told = entry.get("type"), entry.get("digest")
    if kind in (JOB, IMPORT):
        return "history" if digest(history, salts_of(history["log"])) == told else None
    if kind == REVIEW:
        for number, review in enumerate(history["reviews"]):
            if review_digest(history["id"], review, salts_of(review["log"])) == told:
                return f"review {number}"
    if kind == ERASURE:
        own = {**texts(history), **review_texts(history)}
        hashes = {pointer: value["hash"] for pointer, value in own.items() if is_erased(value)}
        for number, erasure in enumerate(history["erasures"]):
            if erasure_digest(history["id"], erasure, hashes) == told:
                return f"erasure {number}"
    return None


def job_entry(digest: str, at: str) -> bytes:
    """Return the entry of an ended job.

    Args:
        digest: of its record.
        at: when it is appended to the log: RFC 3339.
    """
    return canonical({"type": JOB, "at": at, "digest": digest})


def import_entry(digest: str, at: str, proof: str) -> bytes:
    """Return the entry of a job that ended elsewhere.

    Args:
        digest: of its record.
        at: when it is appended to the log: RFC 3339.
        proof: the hash of the proof that it came with (`jobs.tlog.exported.proof_hash`). The proof itself would say
            which log, and which entry of it.
    """
    return canonical({"type": IMPORT, "at": at, "digest": digest, "proof": proof})


def deletion_entry(index: int, at: str) -> bytes:
    """Return the entry that says that a job was deleted.

    Args:
        index: of the job's entry.
        at: when this entry is appended: RFC 3339.
    """
    return canonical({"type": DELETION, "at": at, "entry": index})


def review_entry(index: int, digest: str, at: str, proof: str | None = None) -> bytes:
    """Return the entry of a review.

    Args:
        index: of the job's entry.
        digest: of the review's record.
        at: when this entry is appended: RFC 3339.
        proof: of a review that was imported, the hash of the proof that it came with, as in `import_entry`.
    """
    return canonical(
        {"type": REVIEW, "at": at, "entry": index, "digest": digest, **_imported(proof)}
    )


def erasure_entry(
    index: int, texts: Sequence[str], digest: str, at: str, proof: str | None = None
) -> bytes:
    """Return the entry that says that texts of a job were erased.

    Args:
        index: of the job's entry.
        texts: their JSON pointers into the job's history.
        digest: of the erasure's record.
        at: when this entry is appended: RFC 3339.
        proof: as in `review_entry`.
    """
    told = {"type": ERASURE, "at": at, "entry": index, "texts": list(texts), "digest": digest}
    return canonical({**told, **_imported(proof)})


def parse_entry(entry: bytes) -> dict[str, Any]:
    """Return what an entry says; empty if it is none of ours."""
    try:
        value = json.loads(entry)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) and value.get("type") in TYPES else {}


def _digest(record: dict[str, Any]) -> str:
    return f"sha256:{hashlib.sha256(canonical(record)).hexdigest()}"


def _hashed(
    salts: Salts, prefix: str, values: Mapping[str, Any], names: Iterable[str]
) -> dict[str, str | None]:
    return {name: text_hash(salts, f"{prefix}/{name}", values[name]) for name in names}


def _imported(proof: str | None) -> dict[str, str]:
    return {} if proof is None else {"proof": proof}


def _present_only(values: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Return fields that are there; those without a value are left out, as in records that did not know them."""
    return {name: values[name] for name in names if values.get(name)}


def _depth(value: Any) -> int:
    """Return how deep a value is nested. It is no recursion, so that no value is too deep for it."""
    depth, level = 0, [value]
    while level:
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                inner.extend(item.values())
            elif isinstance(item, list):
                inner.extend(item)
        depth, level = depth + 1, inner
    return depth


def _exact(value: Any, odd: list[Any]) -> Any:
    """Return a value that RFC 8785 can spell; add to ``odd`` what Python's encoder spells otherwise."""
    if isinstance(value, dict):
        odd += [key for key in value if not key.isascii()]  # They may be sorted otherwise.
        return {key: _exact(item, odd) for key, item in value.items()}
    if isinstance(value, list):
        return [_exact(item, odd) for item in value]
    if isinstance(value, float):
        if not math.isfinite(value):
            return str(value)
        if value.is_integer() and abs(value) <= MAX_INTEGER:
            return int(value)
        if not MIN_PLAIN <= abs(value) < MAX_PLAIN:
            odd.append(value)
    elif isinstance(value, int) and abs(value) > MAX_INTEGER:
        return str(value)
    return value
