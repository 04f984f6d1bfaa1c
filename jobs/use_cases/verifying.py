"""Verifying: whether the database still has what the log recorded.

Everything is computed again from the entries: the tree, its tiles, the root of each checkpoint. Then the record
of each job, review and erasure is compared with its entry. The first difference ends it, and is named.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.orm import Session

from jobs.database import Database
from jobs.errors import UserError
from jobs.models import Erasure, Job, LogKind, Review
from jobs.statements import log, log_checkpoints, whole_jobs
from jobs.tlog import merkle, tiles
from jobs.tlog.checkpoint import Checkpoint, open_checkpoint
from jobs.tlog.cosignature import Cosigner, require
from jobs.tlog.entry import DELETION, ERASURE, IMPORT, JOB, REVIEW, parse_entry
from jobs.tlog.exported import proof_hash
from jobs.tlog.merkle import HASH_SIZE
from jobs.tlog.note import NoteError, Verifier
from jobs.tlog.record import claimed_entry, misfit
from jobs.tlog.tiles import WIDTH
from jobs.use_cases.sealing import Describe

#: Entries and checkpoints that are read at once.
PAGE = WIDTH
#: Seconds by which a job may get its entry after one that ended later: an interrupted stage hands its text in
#: for as long as it has a lease, and a transaction may take a while to commit.
MAX_DISORDER = 120.0
#: What is raised for values that the program never stores.
_UNREADABLE = (ValueError, TypeError, LookupError, AttributeError)
#: The types of the entries of each kind.
TYPES = {
    LogKind.JOB: (JOB, IMPORT),
    LogKind.DELETION: (DELETION,),
    LogKind.REVIEW: (REVIEW,),
    LogKind.ERASURE: (ERASURE,),
}


class TamperedError(UserError):
    """The database is not what the log recorded. The message names the first record that differs."""


@dataclass
class Report:
    """What was compared, and found to be as it was recorded."""

    origin: str | None = None
    entries: int = 0
    jobs: int = 0
    #: Ends of jobs that were retried after them.
    retried: int = 0
    #: Jobs that were deleted, and whose entries are there.
    deleted: int = 0
    checkpoints: int = 0
    #: Entries of reviews and erasures, those of deleted jobs left out.
    reviews: int = 0
    erasures: int = 0
    #: Jobs that have ended and have no entry yet.
    unsealed: int = 0
    #: How many entries each of the required witnesses has cosigned, by its name.
    witnessed: dict[str, int] = field(default_factory=dict)


class Head(NamedTuple):
    """A root that the tree must have at a size."""

    size: int
    root: bytes
    #: Where it comes from, for messages.
    name: str


def verify(
    database: Database,
    describe: Describe,
    *,
    trusted: Sequence[Verifier] = (),
    witnesses: Sequence[Cosigner] = (),
    checkpoints: Iterable[tuple[str, str]] = (),
) -> Report:
    """Compare a database with its log.

    Args:
        database: to verify.
        describe: returns the history of a job.
        trusted: the keys that may have signed; if none are given, those that the database names. Only keys from
            elsewhere reveal that the log was replaced as a whole.
        witnesses: those that must have cosigned the log. Their cosignatures that are kept are checked.
        checkpoints: names and notes of earlier checkpoints, which the log must continue.

    Raises:
        TamperedError: a record was changed, removed, added or reordered.
    """
    with database.read_session() as session:
        connection = session.connection()
        report = Report(*log.state(connection))
        keys = list(trusted) or [Verifier.parse(row.verifier) for row in log.keys(connection)]
        given = sorted(
            _open(note, keys, report.origin, f"the checkpoint in {name}")
            for name, note in checkpoints
        )
        tree = _Tree(connection, report)
        cosigned = _Cosigned(connection, witnesses, report)
        heads = heapq.merge(given, _stored_heads(connection, keys, report, cosigned))
        head = next(heads, None)
        for start in range(0, report.entries, PAGE):
            rows = log.list_entries(connection, start, start + PAGE)
            for row in rows:
                tree.append(row)
                while head is not None and head.size <= tree.size:
                    tree.check(head)
                    head = next(heads, None)
            if len(rows) < min(PAGE, report.entries - start):
                raise TamperedError(f"entry {start + len(rows)} was removed")
            for part in whole_jobs.parts(connection, [row.job_id for row in rows]):
                of_part = [row for row in rows if row.job_id in part]
                _check_jobs(session, of_part, describe, report)
                session.expunge_all()
        if head is not None:
            raise TamperedError(
                f"the log ends after {report.entries} entries, and {head.name} has {head.size}: "
                f"entry {report.entries} was removed"
            )
        if log.any_beyond(connection, report.entries):
            raise TamperedError(f"entry {report.entries} was added: no checkpoint has it")
        tree.finish()
        cosigned.finish()
        _check_places(connection)
        report.unsealed = log.count_unsealed(connection)
    return report


class _Tree:
    """The tree of the entries so far, compared with the stored tiles."""

    def __init__(self, connection: sa.Connection, report: Report) -> None:
        self.size = 0
        self._connection = connection
        self._origin = report.origin
        #: The tiles at the right edge. The others are full, and were compared.
        self._edge: dict[tuple[int, int], bytes] = {}
        #: The stored tile with the hash of the next leaf.
        self._stored = b""
        self._signed = 0

    def append(self, row: sa.Row[int, LogKind, str, bytes]) -> None:
        """Add an entry, which should be the next one."""
        if row.entry_index != self.size:
            raise TamperedError(f"entry {self.size} was removed")
        offset = self.size % WIDTH
        if not offset:
            self._stored = log.get_tile(self._connection, 0, self.size // WIDTH)
        # SQLite takes text in a column of bytes.
        leaf = merkle.leaf_hash(row.entry) if isinstance(row.entry, bytes) else b""
        if leaf != self._stored[offset * HASH_SIZE : (offset + 1) * HASH_SIZE]:
            raise TamperedError(
                f"entry {self.size}, of job {row.job_id}, is not the one that was recorded there: "
                "it was changed, reordered or added"
            )
        for (level, index), hashes in tiles.append(self.size, [leaf], self._read).items():
            self._edge[level, index] = hashes
            if len(hashes) == WIDTH * HASH_SIZE:
                self._compare(level, index)
        self.size += 1
        for level, index in [
            key for key in self._edge if len(self._edge[key]) == WIDTH * HASH_SIZE
        ]:
            del self._edge[level, index]

    def check(self, head: Head) -> None:
        """Compare the root with a checkpoint's."""
        root = merkle.EMPTY_ROOT
        if head.size:
            root = merkle.root(self.size, tiles.nodes(self._read))
        if root != head.root:
            raise TamperedError(
                f"the log is not the one of {head.name}, with {head.size} entries: one of the entries "
                f"{self._signed} to {head.size - 1} was changed, removed, added or reordered"
            )
        self._signed = head.size

    def finish(self) -> None:
        """Compare the partial tiles; all entries must be signed."""
        if self._signed != self.size:
            raise TamperedError(f"entry {self._signed} is in no checkpoint: it was added")
        for level, index in self._edge:
            self._compare(level, index)

    def _read(self, level: int, index: int) -> bytes:
        return self._edge[level, index]

    def _compare(self, level: int, index: int) -> None:
        if log.get_tile(self._connection, level, index) != self._edge[level, index]:
            raise TamperedError(f"tile {index} of level {level} was changed")


def _open(note: str, keys: Sequence[Verifier], origin: str | None, name: str) -> Head:
    try:
        checkpoint: Checkpoint = open_checkpoint(note, keys)
    except NoteError as error:
        raise TamperedError(f"{name} is not trusted: {error}") from error
    if checkpoint.origin != origin:
        raise TamperedError(f"{name} is of the log {checkpoint.origin}, and this log is {origin}")
    return Head(checkpoint.size, checkpoint.root, name)


class _Cosigned:
    """The cosignatures of witnesses, compared with the checkpoints that they are of."""

    def __init__(
        self, connection: sa.Connection, witnesses: Sequence[Cosigner], report: Report
    ) -> None:
        self._by_label = {witness.label: witness for witness in witnesses}
        self._report = report
        self._left = {
            (size, witness): line
            for size, witness, line in log_checkpoints.list_cosignatures(
                connection, list(self._by_label)
            )
        }

    def check(self, size: int, note: str) -> None:
        """Check the cosignatures of a checkpoint."""
        for label, witness in self._by_label.items():
            line = self._left.pop((size, label), None)
            if line is None:
                continue
            try:
                require(note + line, [witness])
            except NoteError as error:
                raise TamperedError(f"checkpoint {size}: {error}") from error
            self._report.witnessed[witness.name] = size

    def finish(self) -> None:
        """Each witness must have cosigned; there must be none of checkpoints that are not there."""
        for size, label in self._left:
            name = self._by_label[label].name
            raise TamperedError(f"checkpoint {size} was removed: {name} has cosigned it")
        for witness in self._by_label.values():
            if witness.name not in self._report.witnessed:
                raise TamperedError(
                    f"the witness {witness.name} has cosigned no checkpoint of the log"
                )


def _stored_heads(
    connection: sa.Connection, keys: Sequence[Verifier], report: Report, cosigned: _Cosigned
) -> Iterator[Head]:
    """Yield the stored checkpoints, the smallest first."""
    size = -1
    while rows := log_checkpoints.list_checkpoints(connection, size, PAGE):
        for size, note in rows:
            head = _open(note, keys, report.origin, f"checkpoint {size}")
            if head.size != size:
                raise TamperedError(
                    f"checkpoint {size} was changed: its note has {head.size} entries"
                )
            report.checkpoints += 1
            cosigned.check(size, note)
            yield head


def _check_jobs(
    session: Session,
    rows: Sequence[sa.Row[int, LogKind, str, bytes]],
    describe: Describe,
    report: Report,
) -> None:
    """Compare the jobs that entries are about, and what was added to them, with the entries."""
    ids = {row.job_id for row in rows}
    jobs, histories = _load(session, [*dict.fromkeys(row.job_id for row in rows)], describe)
    deletions = log.find_deletions(session.connection(), ids - jobs.keys())
    for index, kind, job_id, entry in rows:
        recorded, job = parse_entry(entry), jobs.get(job_id)
        name = f"job {job_id} (entry {index})"
        if recorded.get("type") not in TYPES[kind]:
            raise TamperedError(f"the kind of entry {index} was changed")
        if kind is LogKind.DELETION:
            if job is not None:
                raise TamperedError(f"{name} was added: the log says that it was deleted")
        elif job is None:
            if job_id not in deletions:
                raise TamperedError(f"{name} was removed")
            of = index if kind is LogKind.JOB else recorded["entry"]
            if of not in deletions[job_id]:
                raise TamperedError(f"{name} was removed: its deletion is of another entry")
            report.deleted += kind is LogKind.JOB
        elif kind is LogKind.JOB and index in _ends(job) - {job.log_index}:
            report.retried += 1
        elif kind is LogKind.JOB:
            if job.log_index is None:
                raise TamperedError(f"{name} was changed: it claims no entry")
            if job.log_index != index:
                raise TamperedError(f"{name} was reordered: it claims entry {job.log_index}")
            _check_job(histories[job_id], recorded, name)
            _check_origin(job, recorded, name)
            report.jobs += 1
        elif recorded["entry"] not in {job.log_index, *_ends(job)}:
            raise TamperedError(f"entry {index}, of job {job_id}, is of another job's")
        elif kind is LogKind.REVIEW:
            number = _check_review(histories[job_id], recorded, index)
            review = job.reviews[number]
            _check_origin(review, recorded, f"review {review.id} of job {job_id} (entry {index})")
            report.reviews += 1
        else:
            number = _check_erasure(histories[job_id], recorded, index)
            name = f"an erasure of texts of job {job_id} (entry {index})"
            _check_origin(job.erasures[number], recorded, name)
            report.erasures += 1


def _load(
    session: Session, ids: Sequence[str], describe: Describe
) -> tuple[dict[str, Job], dict[str, dict[str, Any]]]:
    """Return jobs and their histories by their ids."""
    try:
        jobs = whole_jobs.load(session, ids)
        return jobs, {job_id: describe(job) for job_id, job in jobs.items()}
    except _UNREADABLE as error:
        if len(ids) == 1:
            raise TamperedError(
                f"job {ids[0]} was changed: what is stored makes no history "
                f"({type(error).__name__}: {error})"
            ) from error
        for job_id in ids:
            session.expunge_all()
            _load(session, [job_id], describe)
        raise


def _ends(job: Job) -> set[int]:
    """Return the entries of the ends of a job after which it was retried."""
    return {retry["entry"] for retry in job.retries if retry["entry"] is not None}


def _check_job(history: dict[str, Any], entry: dict[str, Any], name: str) -> None:
    """Compare a job with its entry, and what the database keeps of its reviews and erasures with them."""
    if history["digest"] != entry["digest"]:
        raise TamperedError(f"{name} was changed")
    if (reason := misfit(history)) is not None:
        raise TamperedError(f"{name} was changed: {reason}")


def _check_origin(row: Job | Review | Erasure, entry: dict[str, Any], name: str) -> None:
    """Compare the proof that a record was imported with, if it was, with its entry."""
    if (row.origin_proof and proof_hash(row.origin_proof)) != entry.get("proof"):
        raise TamperedError(f"{name} was changed: the proof that it was imported with differs")


def _check_review(history: dict[str, Any], entry: dict[str, Any], index: int) -> int:
    """Compare a review with its entry; return its place among those of the job."""
    claim = [review for review in history["reviews"] if claimed_entry(review) == index]
    right = [review for review in history["reviews"] if review["digest"] == entry["digest"]]
    of = f"of job {history['id']}"
    if not claim and not right:
        raise TamperedError(f"a review {of} (entry {index}) was removed")
    if not right:
        raise TamperedError(f"review {claim[0]['id']} {of} (entry {index}) was changed")
    if right[0] not in claim:
        raise TamperedError(
            f"review {right[0]['id']} {of} (entry {index}) was reordered: it claims entry "
            f"{claimed_entry(right[0])}"
        )
    if added := [review["id"] for review in claim if review is not right[0]]:
        raise TamperedError(f"review {added[0]} {of} was added: it claims entry {index} of another")
    return [review is right[0] for review in history["reviews"]].index(True)


def _check_erasure(history: dict[str, Any], entry: dict[str, Any], index: int) -> int:
    """Compare an erasure with its entry; return its place among those of the job."""
    found = [erasure for erasure in history["erasures"] if claimed_entry(erasure) == index]
    name = f"an erasure of texts of job {history['id']} (entry {index})"
    if not found:
        raise TamperedError(f"{name} was removed or reordered")
    if len(found) > 1:
        raise TamperedError(f"{name} was added")
    if found[0]["digest"] != entry["digest"] or found[0]["texts"] != entry["texts"]:
        raise TamperedError(f"{name} was changed")
    return [erasure is found[0] for erasure in history["erasures"]].index(True)


def _check_places(connection: sa.Connection) -> None:
    """Look for records that were added."""
    if (found := log.find_misplaced(connection)) is not None:
        name = {
            LogKind.JOB: f"job {found.job_id}",
            LogKind.REVIEW: f"review {found.id} of job {found.job_id}",
            LogKind.ERASURE: f"an erasure of texts of job {found.job_id}",
        }[LogKind(found.kind)]
        raise TamperedError(f"{name} was added: the entry that it claims is not its own")
    if job_id := log.find_passed_over(connection, MAX_DISORDER):
        raise TamperedError(
            f"job {job_id} was added: it ended before jobs that have an entry, and has none"
        )
    if (review := log.find_passed_over_review(connection, MAX_DISORDER)) is not None:
        raise TamperedError(
            f"review {review.id} of job {review.job_id} was added: it is older than reviews that have "
            "an entry, and has none"
        )
