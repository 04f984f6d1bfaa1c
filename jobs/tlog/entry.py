"""What the log records: entries, and the record of a job that an entry has the digest of.

A **record** is a job's history with a salted hash in place of each text, so that a text can be erased and the
record remains. An **entry** has the record's digest and not the record. So it is small however many attempts a
job has (an entry bundle gives an entry 65,535 bytes), and it tells readers of the log nothing: not the job's
id, nor its owner, nor whether two jobs are alike.

Records name their fields: a history may get new ones, and what was recorded without them still verifies.
All JSON is canonical (RFC 8785).
"""

from __future__ import annotations

import hashlib
import hmac
import json
import math
import secrets
from collections.abc import Iterable, Mapping
from typing import Any

import rfc8785

#: The type of the entry of an ended job, and of that of a deleted one.
JOB = "helixq/job/v1"
DELETION = "helixq/deletion/v1"

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


def text_hash(salt: bytes, pointer: str, value: Any) -> str | None:
    """Return the salted hash of a text (or another JSON value) of a record; None stays None.

    Args:
        salt: the job's.
        pointer: where the text is in the record: a JSON pointer (RFC 6901). Each text has a salt of its own,
            HMAC-SHA256(salt, pointer), so that one hash says nothing about another.
        value: the text.
    """
    if value is None:
        return None
    own_salt = hmac.digest(salt, pointer.encode(), "sha256")
    return f"sha256:{hashlib.sha256(own_salt + canonical(value)).hexdigest()}"


def record(history: Mapping[str, Any], salt: bytes) -> dict[str, Any]:
    """Return the record of an ended job.

    Args:
        history: of the job, as the API shows it.
        salt: the job's.

    Raises:
        KeyError: the history lacks a field.
    """
    batch, error = history["batch"], history["error"]
    return {
        **{name: history[name] for name in _PLAIN},
        **_hashed(salt, "", history, _TEXTS),
        "batch": batch and {"id": batch["id"], **_hashed(salt, "/batch", batch, ("custom_id",))},
        "error": error and {"code": error["code"], **_hashed(salt, "/error", error, ("message",))},
        **_retries(history, salt),
        "attempts": [
            {
                **{name: attempt[name] for name in _ATTEMPT_PLAIN},
                **_hashed(salt, f"/attempts/{number}", attempt, _ATTEMPT_TEXTS),
            }
            for number, attempt in enumerate(history["attempts"])
        ],
    }


def digest(history: Mapping[str, Any], salt: bytes) -> str:
    """Return the digest of a job's record: ``sha256:`` and the hash of its canonical JSON."""
    return f"sha256:{hashlib.sha256(canonical(record(history, salt))).hexdigest()}"


def job_entry(digest: str, at: str) -> bytes:
    """Return the entry of an ended job.

    Args:
        digest: of its record.
        at: when it is appended to the log: RFC 3339.
    """
    return canonical({"type": JOB, "at": at, "digest": digest})


def deletion_entry(index: int, at: str) -> bytes:
    """Return the entry that says that a job was deleted.

    Args:
        index: of the job's entry.
        at: when this entry is appended: RFC 3339.
    """
    return canonical({"type": DELETION, "at": at, "entry": index})


def parse_entry(entry: bytes) -> dict[str, Any]:
    """Return what an entry says; empty if it is none of ours."""
    try:
        value = json.loads(entry)
    except ValueError:
        return {}
    return value if isinstance(value, dict) and value.get("type") in (JOB, DELETION) else {}


def _hashed(
    salt: bytes, prefix: str, values: Mapping[str, Any], names: Iterable[str]
) -> dict[str, str | None]:
    return {name: text_hash(salt, f"{prefix}/{name}", values[name]) for name in names}


def _retries(history: Mapping[str, Any], salt: bytes) -> dict[str, Any]:
    """Return the retries of a job; nothing if there are none, as in records that knew none."""
    retries = history.get("retries")
    if not retries:
        return {}
    return {
        "retries": [
            {
                "at": retry["at"],
                "finished_at": retry["finished_at"],
                "entry": retry["entry"],
                "error": {
                    "code": retry["error"]["code"],
                    **_hashed(salt, f"/retries/{number}/error", retry["error"], ("message",)),
                },
            }
            for number, retry in enumerate(retries)
        ]
    }


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
