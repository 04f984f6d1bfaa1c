"""Verifying: whether the database still has what the log recorded.

Everything is computed again from the entries: the tree, its tiles, the root of each checkpoint
(`jobs.use_cases.verifying_log`). And the record of each job, review and erasure is compared with its entry. The first
difference ends it, and is named.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from jobs.database import Database
from jobs.errors import TamperedError
from jobs.models import Erasure, Job, LogKind, Review
from jobs.statements import log, whole_jobs
from jobs.tlog.cosignature import Cosigner
from jobs.tlog.entry import DELETION, ERASURE, IMPORT, JOB, REVIEW, parse_entry
from jobs.tlog.exported import proof_hash
from jobs.tlog.note import Verifier
from jobs.tlog.record import claimed_entry, misfit
from jobs.tlog.tiles import WIDTH
from jobs.use_cases.sealing import Describe
from jobs.use_cases.verifying_log import StoredCheckpoints, Tree, open_head

#: Entries that are read at once.
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
    with database.read_session(is_long=True) as session:
        connection = session.connection()
        report = Report(*log.state(connection))
        keys = list(trusted) or [Verifier.parse(row.verifier) for row in log.keys(connection)]
        given = sorted(
            open_head(note, keys, report.origin, f"the checkpoint in {name}")
            for name, note in checkpoints
        )
        tree = Tree(connection)
        stored = StoredCheckpoints(connection, keys, report.origin, witnesses)
        heads = heapq.merge(given, stored.heads())
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
        stored.finish()
        _check_places(connection)
        report.checkpoints, report.witnessed = stored.count, stored.witnessed
        report.unsealed = log.count_unsealed(connection)
    return report


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
        for job_id in ids:  # to find the one, which is named
            session.expunge_all()
            _load(session, [job_id], describe)
        raise


def _ends(job: Job) -> set[int]:
    """Return the entries of the ends of a job after which it was retried; none if they are in another log."""
    if job.origin_proof is not None:
        return set()
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
