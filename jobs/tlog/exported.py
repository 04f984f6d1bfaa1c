"""Exported histories: each is checked by itself, with nothing but what is in its line and the public keys.

A line of an export of histories has a job's history, the proof of its entry (``proof``), those of the entries of its
reviews and erasures (``review_proofs`` and ``erasure_proofs``), and for what was imported the proofs that it came
with (``origin_proof``, ``review_origin_proofs`` and ``erasure_origin_proofs``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jobs.tlog import merkle
from jobs.tlog.checkpoint import Checkpoint
from jobs.tlog.entry import ERASURE, IMPORT, JOB, REVIEW, parse_entry
from jobs.tlog.merkle import ProofError
from jobs.tlog.note import Note, NoteError, Verifier
from jobs.tlog.proof import Proof
from jobs.tlog.record import digest, erasure_digest, misfit, review_digest, review_texts, texts
from jobs.tlog.salted import SALT_SIZE, Salts, is_erased, salts_of

#: What a line has for its reviews and erasures, each with one for each of them or null. Those of an earlier version
#: lack them.
PROOFS = ("review_proofs", "erasure_proofs", "review_origin_proofs", "erasure_origin_proofs")


class HistoryError(ValueError):
    """A history is not the one that was recorded. The message says what differs."""


@dataclass(frozen=True)
class Checked:
    """A history that is the one that was recorded."""

    digest: str
    salts: Salts
    #: The JSON pointers of erased texts, which cannot be checked.
    erased: Sequence[str]
    #: The proof that it came with.
    proof: Proof
    #: The proof of the log where the job ended: the same, unless it was imported there.
    origin: Proof
    #: Those of the first logs that had its reviews, and its erasures; None for one without a proof.
    review_origins: Sequence[str | None]
    erasure_origins: Sequence[str | None]
    #: Whether the signature of its proof was checked, and whether those of all first logs were.
    signed: bool
    origin_signed: bool
    #: The number of reviews and erasures without a proof. Anyone could have added them to the history.
    unproved: int


@dataclass
class _Additions:
    """What was found of the proofs of reviews and erasures."""

    review: list[str | None] = field(default_factory=list)
    erasure: list[str | None] = field(default_factory=list)
    unproved: int = 0
    #: Whether the signatures of all that were imported were checked.
    signed: bool = True


def proof_hash(proof: str) -> str:
    """Return the hash of a proof, as the entry of an imported job has it."""
    return f"sha256:{hashlib.sha256(proof.encode()).hexdigest()}"


def check(history: Mapping[str, Any], trusted: Sequence[Verifier]) -> Checked:
    """Check a history of a job that has an entry in a log.

    Args:
        history: a line of an export.
        trusted: the keys that may have signed. If none are given, no signature is checked: then the history is
            the one that its proof was made for, by whomever. The signature of the first log of an imported job, or of
            an imported review or erasure, is checked if a key of that log is among them.

    Raises:
        HistoryError: something is not as it was recorded.
    """
    try:
        salts = salts_of(history["log"])
        index, given, proof = history["log"]["index"], history["digest"], history["proof"]
        origin_proof = history["origin_proof"]
        recorded = digest(history, salts)
        _check_salts(salts, "its")
        if recorded != given:
            raise HistoryError(
                f"it was changed: its digest should be {recorded}, and it says {given}"
            )
        all_texts = {**texts(history), **review_texts(history)}
        erased = {p: v["hash"] for p, v in all_texts.items() if is_erased(v)}
        _check_additions(history, erased)
    except HistoryError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise HistoryError("it is not the complete history of a job that is in a log") from error
    parsed, entry, signed = _open(proof, trusted, required=True)
    if parsed.index != index:
        raise HistoryError(f"it claims entry {index}, and its proof is of entry {parsed.index}")
    _compare(entry, recorded)
    origin, origin_signed = parsed, signed
    if entry["type"] == IMPORT:
        origin, origin_signed = _check_origin(origin_proof, entry, recorded, trusted)
    elif origin_proof is not None:
        raise HistoryError("its entry says that it ended in this log, and it has another proof")
    try:
        additions = _check_proofs(history, parsed, origin, trusted)
    except HistoryError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise HistoryError("it has no proofs of its reviews and erasures as it should") from error
    return Checked(
        digest=recorded,
        salts=salts,
        erased=list(erased),
        proof=parsed,
        origin=origin,
        review_origins=additions.review,
        erasure_origins=additions.erasure,
        signed=signed,
        origin_signed=origin_signed and additions.signed,
        unproved=additions.unproved,
    )


def _check_salts(salts: Salts, whose: str) -> None:
    for salt in (salts,) if isinstance(salts, bytes) else salts.values():
        if len(salt) != SALT_SIZE:
            raise HistoryError(f"{whose} salt has {len(salt)} bytes, and should have {SALT_SIZE}")


def _check_origin(
    text: object, entry: Mapping[str, Any], recorded: str, trusted: Sequence[Verifier]
) -> tuple[Proof, bool]:
    """Check the proof that a job was imported with; return it, and whether its signature was checked.

    Args:
        text: the proof.
        entry: of the import, which names it.
        recorded: the job's digest.
        trusted: as for `check`.
    """
    if not isinstance(text, str) or proof_hash(text) != entry.get("proof"):
        raise HistoryError(
            "the proof that it was imported with is not the one that its entry names"
        )
    origin, first, signed = _open(text, trusted, required=False)
    _compare(first, recorded)
    return origin, signed


def _check_additions(history: Mapping[str, Any], erased: Mapping[str, str]) -> None:
    """Check the digests of reviews and erasures, and that they fit the history.

    Args:
        history: a line of an export.
        erased: the hashes of its erased texts, by their JSON pointers.
    """
    for number, review in enumerate(history["reviews"]):
        salts = salts_of(review["log"])
        _check_salts(salts, f"the review {number}'s")
        _check_digest(review, review_digest(history["id"], review, salts), f"review {number}")
    for number, erasure in enumerate(history["erasures"]):
        _check_digest(erasure, erasure_digest(history["id"], erasure, erased), f"erasure {number}")
    if (reason := misfit(history)) is not None:
        raise HistoryError(f"it was changed: {reason}")


def _check_proofs(
    history: Mapping[str, Any], proof: Proof, first: Proof, trusted: Sequence[Verifier]
) -> _Additions:
    """Check the proofs of reviews and erasures.

    Args:
        history: a line of an export.
        proof: of the job's entry.
        first: of the job's entry in the log where it ended: the same, unless it was imported.
        trusted: as for `check`.
    """
    # Of the first log. A job that was imported is not retried.
    retried = {retry["entry"] for retry in history["retries"]}
    places = {proof.index, *retried} if proof is first else {proof.index}
    found = _Additions()
    for kind, name, origins in (
        (REVIEW, "review", found.review),
        (ERASURE, "erasure", found.erasure),
    ):
        records = history[f"{name}s"]
        none = [None] * len(records)  # As in one of an earlier version.
        proofs = history.get(f"{name}_proofs", none), history.get(f"{name}_origin_proofs", none)
        for number, (record, text, origin) in enumerate(zip(records, *proofs, strict=True)):
            addition = _Addition(kind, f"{name} {number}", record)
            named = None if text is None else addition.check(text, proof, places, trusted)
            if origin is None and named is None:
                origins.append(text)
                found.unproved += text is None
                continue
            # Without an entry yet, nothing names the proof that an imported one came with.
            is_named = text is not None or proof is first
            if not isinstance(origin, str) or (is_named and proof_hash(origin) != named):
                raise HistoryError(
                    f"the proof that its {addition.name} was imported with is not the one that its entry names"
                )
            signed = addition.check_origin(origin, first, {first.index, *retried}, trusted)
            origins.append(origin)
            found.signed = found.signed and signed
            found.unproved += text is None and not signed and bool(trusted)
    return found


@dataclass(frozen=True)
class _Addition:
    """A review or an erasure of a history."""

    #: The type of its entries.
    kind: str
    #: For messages: ``review 0``.
    name: str
    record: Mapping[str, Any]

    def check(
        self, text: object, job: Proof, places: Collection[int], trusted: Sequence[Verifier]
    ) -> object:
        """Check the proof of its entry; return the hash of the proof that it was imported with, if the entry has one.

        Args:
            text: the proof.
            job: of the job's entry in the same log.
            places: the entries of the job there, one of which it names.
            trusted: as for `check`.
        """
        proof, entry, _ = _open(text, trusted, required=True)
        if (
            not self._is_of(entry)
            or entry["entry"] not in places
            or proof.log != job.log
            or proof.index != self.record["log"]["index"]
        ):
            raise HistoryError(f"the proof of its {self.name} is of another entry")
        return entry.get("proof")

    def check_origin(
        self, text: str, first: Proof, places: Collection[int], trusted: Sequence[Verifier]
    ) -> bool:
        """Check the proof that it was imported with; return whether its signature was checked.

        Args:
            text: the proof.
            first: of the job's entry in the log where it ended.
            places: the entries of the job there.
            trusted: as for `check`.
        """
        proof, entry, signed = _open(text, trusted, required=False)
        if not self._is_of(entry) or (proof.log == first.log and entry["entry"] not in places):
            raise HistoryError(
                f"the proof that its {self.name} was imported with is of another entry"
            )
        return signed

    def _is_of(self, entry: Mapping[str, Any]) -> bool:
        return entry.get("type") == self.kind and bool(entry["digest"] == self.record["digest"])


def _check_digest(record: Mapping[str, Any], right: str, name: str) -> None:
    if record["digest"] != right:
        raise HistoryError(
            f"the digest of its {name} should be {right}, and it says {record['digest']}"
        )


def _open(
    text: object, trusted: Sequence[Verifier], *, required: bool
) -> tuple[Proof, dict[str, Any], bool]:
    """Return a proof that is right, its entry, and whether its signature was checked."""
    if not isinstance(text, str):
        raise HistoryError("it has no proof")
    try:
        proof = Proof.parse(text)
        entry = proof.extra
        if entry is None:
            raise NoteError("the proof has no entry")
        of_log = [key for key in trusted if key.name == proof.log]
        if of_log or (trusted and required):
            proof.verify(entry, of_log)
        else:
            checkpoint = Checkpoint.parse(Note.parse(proof.checkpoint).text)
            merkle.verify_inclusion(
                merkle.leaf_hash(entry),
                proof.index,
                checkpoint.size,
                proof.hashes,
                checkpoint.root,
            )
    except (NoteError, ProofError) as error:
        raise HistoryError(f"its proof is wrong: {error}") from error
    return proof, parse_entry(entry), bool(of_log)


def _compare(entry: Mapping[str, Any], recorded: str) -> None:
    if entry.get("type") not in (JOB, IMPORT):
        raise HistoryError("its proof is of an entry that records no job")
    if entry.get("digest") != recorded:
        raise HistoryError(
            f"it was changed: its digest is {recorded}, and {entry.get('digest')} was recorded"
        )
