"""Entries of the log: each says what happened, and has the digest of its record (`jobs.tlog.record`).

An entry has the digest and not the record itself. So it is small however many attempts a job has (an entry bundle
gives an entry 65,535 bytes), and it tells readers of the log nothing: not the job's id, nor its owner, nor whether
two jobs are alike. An entry is canonical JSON (`jobs.tlog.canonical`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from jobs.tlog.canonical import canonical
from jobs.tlog.record import digest, erasure_digest, review_digest, review_texts, texts
from jobs.tlog.salted import is_erased, salts_of

#: The types of entries: of an ended job, of one that was imported, and of what came later.
JOB = "helixq/job/v1"
IMPORT = "helixq/import/v1"
DELETION = "helixq/deletion/v1"
REVIEW = "helixq/review/v1"
ERASURE = "helixq/erasure/v1"
#: What is read of the entries of each type.
_MEMBERS: Mapping[str, Mapping[str, type]] = {
    JOB: {"digest": str},
    IMPORT: {"digest": str, "proof": str},
    DELETION: {"entry": int},
    REVIEW: {"digest": str, "entry": int},
    ERASURE: {"digest": str, "entry": int},
}


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
    index: int, texts: Sequence[str], digest: str, at: str, proof: str | None
) -> bytes:
    """Return the entry that says that texts of a job were erased.

    Args:
        index: of the job's entry.
        texts: their JSON pointers into the job's history.
        digest: of the erasure's record.
        at: when this entry is appended: RFC 3339.
        proof: as in `review_entry`.
    """
    entry = {"type": ERASURE, "at": at, "entry": index, "texts": list(texts), "digest": digest}
    return canonical({**entry, **_imported(proof)})


def parse_entry(entry: bytes) -> dict[str, Any]:
    """Return what an entry says; empty if it is none of ours."""
    try:
        value = json.loads(entry)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(value, dict) or not isinstance(kind := value.get("type"), str):
        return {}
    members = _MEMBERS.get(kind)
    if members is None or not all(isinstance(value.get(k), t) for k, t in members.items()):
        return {}
    return value


def recorded_as(history: Mapping[str, Any], entry: Mapping[str, Any]) -> str | None:
    """Return what of a job's history an entry records: ``history``, ``review N`` or ``erasure N``; None if nothing.

    Raises:
        KeyError, TypeError, ValueError: it is no history of a job that is in a log.
    """
    kind, recorded = entry.get("type"), entry.get("digest")
    if kind in (JOB, IMPORT):
        return "history" if digest(history, salts_of(history["log"])) == recorded else None
    if kind == REVIEW:
        for number, review in enumerate(history["reviews"]):
            if review_digest(history["id"], review, salts_of(review["log"])) == recorded:
                return f"review {number}"
    if kind == ERASURE:
        own = {**texts(history), **review_texts(history)}
        hashes = {pointer: value["hash"] for pointer, value in own.items() if is_erased(value)}
        for number, erasure in enumerate(history["erasures"]):
            if erasure_digest(history["id"], erasure, hashes) == recorded:
                return f"erasure {number}"
    return None


def _imported(proof: str | None) -> dict[str, str]:
    return {} if proof is None else {"proof": proof}
