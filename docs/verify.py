"""Check histories of HelixQ without HelixQ: ``python verify.py jobs.jsonl keys.txt``.

It shares no code with HelixQ and follows https://c2sp.org, RFC 8785, RFC 9162 and trust.md alone. It needs
``pip install cryptography rfc8785``.

The first file is what ``helixq jobs export -o jobs.jsonl`` wrote, and the second has the public keys of the log, one a
line, from ``helixq jobs log-key``. The program prints a line for each history, and ends with the status 1 at the first
one that is not as it was recorded. Cosignatures of witnesses, and the proofs that an imported history came with, it
leaves to others.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import rfc8785
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

FIELDS = [
    "id",
    "owner",
    "key",
    "status",
    "question",
    "system",
    "turns",
    "input_items",
    "options",
    "metadata",
    "context",
    "previous_response_id",
    "rounds",
    "priority",
    "background",
    "temperature",
    "top_k",
    "top_p",
    "max_output_tokens",
    "seed",
    "replay_of",
    "batch",
    "model",
    "run",
    "restarts",
    "created_at",
    "started_at",
    "finished_at",
    "deadline_at",
    "error",
    "stop",
    "retries",
    "traceparent",
    "attempts",
]
TEXTS = ["question", "system", "turns", "input_items", "options", "stop", "metadata"]


#: Public keys by their names and the first bytes of their hashes.
Keys = dict[tuple[str, bytes], Ed25519PublicKey]


class ChangedError(Exception):
    """A history is not as it was recorded."""


def sha256(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()


def check(right: object, what: str) -> None:
    if not right:
        raise ChangedError(what)


def canonical(value: Any) -> bytes:
    """Return canonical JSON, with large integers as their digits."""

    def exact(part: Any) -> Any:
        if isinstance(part, dict):
            return {name: exact(each) for name, each in part.items()}
        if isinstance(part, list):
            return [exact(each) for each in part]
        large = isinstance(part, int) and abs(part) >= 2**53
        return str(part) if large else part

    return rfc8785.dumps(exact(value))


def digest(value: Any) -> str:
    return "sha256:" + sha256(canonical(value)).hex()


def is_erased(text: Any) -> bool:
    return isinstance(text, dict) and text.keys() == {"erased", "hash"} and text["erased"] is True


def salted(text: Any, pointer: str, log: dict[str, Any]) -> str | None:
    """Return the salted hash of a text."""
    if text is None or is_erased(text):
        return None if text is None else str(text["hash"])
    if "salts" in log:
        own = bytes.fromhex(log["salts"][pointer])
    else:
        own = hmac.digest(bytes.fromhex(log["salt"]), pointer.encode(), "sha256")
    return "sha256:" + sha256(own, canonical(text)).hex()


def job_record(history: dict[str, Any]) -> dict[str, Any]:
    log = history["log"]
    record = {name: history[name] for name in FIELDS}
    record |= {name: salted(history[name], f"/{name}", log) for name in TEXTS}
    for name, text in (("batch", "custom_id"), ("error", "message")):
        if history[name] is not None:
            hashed = salted(history[name][text], f"/{name}/{text}", log)
            record[name] = {**history[name], text: hashed}
    record["attempts"] = []
    for index, attempt in enumerate(history["attempts"]):
        texts = {
            name: salted(attempt[name], f"/attempts/{index}/{name}", log)
            for name in ("prompt", "output", "error")
        }
        record["attempts"].append(attempt | texts)
        if attempt["server"] is None:
            del record["attempts"][-1]["server"]
    for name in ("stop", "retries", "traceparent"):
        if not record[name]:
            del record[name]
    return record


def review_record(history: dict[str, Any], review: dict[str, Any]) -> dict[str, Any]:
    record = {
        name: review[name]
        for name in ["id", "number", "key", "created_at", "critique", "regeneration"]
    }
    for name in ("reviewer", "corrected_answer", "tags", "note"):
        record[name] = salted(review[name], f"/{name}", review["log"])
    return record | {"job": history["id"]}


def erasure_record(history: dict[str, Any], erasure: dict[str, Any]) -> dict[str, Any]:
    def at(pointer: str) -> Any:
        value: Any = history
        for name in pointer.split("/")[1:]:
            value = value[int(name) if isinstance(value, list) else name]
        check(is_erased(value), f"{pointer} is not erased")
        return value["hash"]

    record = {name: erasure[name] for name in ["at", "by", "key", "texts"]}
    return record | {"job": history["id"], "hashes": [at(pointer) for pointer in erasure["texts"]]}


def root_of(leaf: bytes, index: int, size: int, path: Iterable[bytes]) -> bytes | None:
    """Return the root that an inclusion proof leads to (RFC 9162, 2.1.3.2)."""
    node, last = leaf, size - 1
    for hash_ in path:
        if index % 2 or index == last:
            node = sha256(b"\1", hash_, node)
            while index % 2 == 0 and index:
                index, last = index >> 1, last >> 1
        else:
            node = sha256(b"\1", node, hash_)
        index, last = index >> 1, last >> 1
    return node if last == 0 else None


def is_signed(note: str, origin: str, keys: Keys) -> bool:
    text, _, signatures = note.partition("\n\n")
    for line in signatures.splitlines():
        _, name, signature = line.split(" ")
        raw = base64.b64decode(signature, validate=True)
        key = keys.get((name, raw[:4]))
        if key is not None and name == origin:
            key.verify(raw[4:], f"{text}\n".encode())
            return True
    return False


def entry_of(proof: str, keys: Keys) -> tuple[dict[str, Any], int]:
    """Return the entry of a tlog-proof, and its index."""
    head, _, note = proof.partition("\n\n")
    version, extra, index, *path = head.split("\n")
    check(version == "c2sp.org/tlog-proof@v1", "this is no tlog-proof")
    entry = base64.b64decode(extra.removeprefix("extra "), validate=True)
    number = int(index.removeprefix("index "))
    origin, size, root = note.split("\n")[:3]
    check(is_signed(note, origin, keys), f"{origin} has no signature of a key that was given")
    hashes = [base64.b64decode(line, validate=True) for line in path]
    found = root_of(sha256(b"\0", entry), number, int(size), hashes)
    check(found == base64.b64decode(root, validate=True), "the entry is not in the log")
    return json.loads(entry), number


def verify(history: dict[str, Any], keys: Keys) -> None:
    """Check a history with its reviews and erasures.

    Raises:
        ChangedError: something is not as it was recorded.
    """
    log = history["log"]
    entry, index = entry_of(history["proof"], keys)
    recorded = digest(job_record(history))
    check(recorded == history["digest"] == entry["digest"], "the history was changed")
    check(index == log["index"], "the proof is of another entry")
    if entry["type"] == "helixq/import/v1":
        origin = history["origin_proof"]
        check(
            "sha256:" + sha256(origin.encode()).hex() == entry["proof"],
            "the proof that it came with is another one",
        )
    else:
        check(entry["type"] == "helixq/job/v1", "the entry is not of a job")
    for kind, plural, record_of in (
        ("review", "reviews", review_record),
        ("erasure", "erasures", erasure_record),
    ):
        for each, proof in zip(history[plural], history[f"{kind}_proofs"], strict=True):
            if proof is None:
                continue
            entry, index = entry_of(proof, keys)
            recorded = digest(record_of(history, each))
            check(recorded == each["digest"] == entry["digest"], f"a {kind} was changed")
            check(entry["type"] == f"helixq/{kind}/v1", f"the entry is not of a {kind}")
            check(entry["entry"] == log["index"], f"a {kind} is of another job")
            check(index == each["log"]["index"], f"the proof of a {kind} is of another entry")
            check(entry.get("texts") == each.get("texts"), "other texts were erased")
    # What is not in the record follows from it.
    ratings = [review["regeneration"] for review in history["reviews"]]
    ratings = [rating for rating in ratings if rating is not None]
    check(history["rating"] == (ratings[-1] if ratings else None), "the rating was changed")
    erased = [erasure["at"] for erasure in history["erasures"]]
    check(history["erased_at"] == (erased[-1] if erased else None), "the erasure was changed")


def read_keys(text: str) -> Keys:
    """Read public keys as Go's ``note`` package writes them: ``NAME+ID+KEY``."""
    keys = {}
    for line in text.split():
        name, _, encoded = line.split("+", 2)
        key = base64.b64decode(encoded)
        identity = sha256(f"{name}\n".encode(), key)[:4]
        keys[name, identity] = Ed25519PublicKey.from_public_bytes(key[1:])
    return keys


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of JSON. Of two values with a name, readers could show either."""
    check(len(dict(pairs)) == len(pairs), "a name is there twice")
    return dict(pairs)


def main(file: str, key_file: str) -> None:
    keys = read_keys(Path(key_file).read_text(encoding="utf-8"))
    with Path(file).open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                history = json.loads(line, object_pairs_hook=unique)
                if history["log"] is not None:
                    verify(history, keys)
            except (ChangedError, InvalidSignature) as error:
                sys.exit(f"line {number}: {error or 'the signature is wrong'}")
            except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
                sys.exit(f"line {number} is no history of an export: {error!r}")
            said = "has no entry yet" if history["log"] is None else "is as it was recorded"
            print(f"line {number} {said}: {history['id']!a}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python verify.py jobs.jsonl keys.txt")
    try:
        main(*sys.argv[1:])
    except (OSError, UnicodeDecodeError) as error:
        sys.exit(f"a file cannot be read: {error}")
