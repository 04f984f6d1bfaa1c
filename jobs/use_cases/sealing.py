"""Sealing: ended jobs, reviews, erasures and deletions get their entries in the log, and checkpoints sign it.

Appending is one transaction that holds the log's lock: the jobs' places, the entries, the tiles and the
checkpoint are committed together. So a process may die at any time, and several may seal at once: nothing is
lost, nothing is appended twice, and there is one log. What takes long, reading and hashing the histories,
comes before it. An ended job never changes but for erasures, which change no digest, so that what was read is
still right. Reviews and erasures follow the entry of their job, and name it.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa

from jobs.database import Database
from jobs.models import Erasure, Job, LogKind, Review
from jobs.statements import log, whole_jobs
from jobs.times import rfc3339
from jobs.tlog import merkle, tiles
from jobs.tlog.entry import deletion_entry, erasure_entry, import_entry, job_entry, review_entry
from jobs.tlog.exported import proof_hash
from jobs.tlog.note import Signer
from jobs.tlog.record import digest
from jobs.tlog.salted import new_salt
from jobs.transient import retry_on_conflict
from jobs.use_cases.log_signing import Signing, check_continued, sign, signer_of

#: The maximum number of jobs of one transaction: nobody else can write to SQLite meanwhile.
MAX_JOBS = 100

#: Returns a job's history, as the API shows it (`jobs.protocol.history`).
Describe = Callable[[Job], dict[str, Any]]


class Prepared(NamedTuple):
    """A job, a review or an erasure that is to be appended."""

    kind: LogKind
    #: Of the row.
    id: Any
    job_id: str
    #: Of its record.
    digest: str
    #: Of a job; None if it keeps salts that it was imported with.
    salt: bytes | None = None
    #: When the job ended.
    end: dt.datetime | None = None
    #: Of the job's entry, if it is not a job.
    job_index: int | None = None
    #: The erased ones.
    texts: Sequence[str] = ()
    #: The hash of the proof that it came with, if it was imported.
    origin: str | None = None


def any_pending(database: Database) -> bool:
    """Return whether anything is to be appended to the log."""
    with database.read() as connection:
        return log.any_pending(connection)


def prepare(database: Database, describe: Describe, *, limit: int = MAX_JOBS) -> list[Prepared]:
    """Return what has no entry yet, with the digests of the records.

    Ended jobs come first, those that ended first, then reviews and erasures of jobs that have entries.

    Args:
        database: of the jobs.
        describe: returns the history of a job.
        limit: the maximum number of each.
    """
    with database.read_session() as session:
        connection = session.connection()
        ended = log.find_unsealed(connection, limit)
        reviews = log.find_unsealed_reviews(connection, limit)
        erasures = log.find_unsealed_erasures(connection, limit)
        prepared = [_ended(job, describe) for job in whole_jobs.load_in_parts(session, ended)]
        added: dict[Any, Prepared] = {}
        for job in whole_jobs.load_in_parts(session, [row.job_id for row in (*reviews, *erasures)]):
            added |= {one.id: one for one in _added(job, describe)}
    # Each in the order of its kind, whatever its job.
    return [*prepared, *(added[row.id] for row in (*reviews, *erasures))]


def _ended(job: Job, describe: Describe) -> Prepared:
    salt, history = job.log_salt, describe(job)
    job_digest = history["digest"]  # An imported job keeps its salts, and so its digest.
    if job_digest is None:
        salt = new_salt()
        job_digest = digest(history, salt)
    origin = _origin(job)
    return Prepared(
        LogKind.JOB, job.id, job.id, job_digest, salt, end=job.finished_at, origin=origin
    )


def _added(job: Job, describe: Describe) -> Iterator[Prepared]:
    """Yield the reviews and the erasures of a job."""
    history, index = describe(job), job.log_index
    for review, record in zip(job.reviews, history["reviews"], strict=True):
        origin = _origin(review)
        yield Prepared(
            LogKind.REVIEW, review.id, job.id, record["digest"], job_index=index, origin=origin
        )
    for erasure, record in zip(job.erasures, history["erasures"], strict=True):
        yield Prepared(
            LogKind.ERASURE,
            erasure.id,
            job.id,
            record["digest"],
            job_index=index,
            texts=record["texts"],
            origin=_origin(erasure),
        )


@retry_on_conflict
def append(
    database: Database, prepared: list[Prepared], signing: Signing, *, limit: int = MAX_JOBS
) -> int:
    """Append what was prepared, and the deletions of jobs, to the log, and sign it.

    Args:
        database: of the jobs.
        prepared: what `prepare` returned. What another process has appended, or was deleted, is left out.
        signing: signs the log.
        limit: the maximum number of deletions.

    Returns:
        the number of entries that were appended.

    Raises:
        LogKeyError: this process cannot sign the log.
        LogSetBackError: the log does not continue the checkpoint that this machine kept.
    """
    note = None
    with database.write() as connection:
        origin, size, now = log.lock(connection)
        signer = signer_of(connection, origin, signing)
        if signing.kept is not None:
            # Within the lock: nobody signs more meanwhile.
            check_continued(connection, signer.name, size, signing.kept.read())
        at = rfc3339(now)
        rows: list[dict[str, Any]] = []

        def add(kind: LogKind, job_id: str, entry: bytes) -> None:
            index = size + len(rows)
            rows.append({"entry_index": index, "kind": kind, "job_id": job_id, "entry": entry})

        for one in prepared:
            if _seal(connection, one, size + len(rows)):
                add(one.kind, one.job_id, _entry(one, at))
        for index, job_id in log.take_deletions(connection, limit):
            add(LogKind.DELETION, job_id, deletion_entry(index, at))
        if rows:
            log.add_entries(connection, rows)
            leaves = [merkle.leaf_hash(row["entry"]) for row in rows]
            note = _grow(connection, size, leaves, signer)
    if note is not None and signing.kept is not None:
        # Once it is committed: what was rolled back was shown to nobody.
        signing.kept.keep(note)
    return len(rows)


def _seal(connection: sa.Connection, one: Prepared, index: int) -> bool:
    """Give a record its place in the log; return False if it has one or is gone."""
    match one.kind:
        case LogKind.JOB:
            return log.seal_job(connection, one.id, one.end, index, one.salt)
        case LogKind.REVIEW:
            return log.seal_review(connection, one.id, index)
        case _:
            return log.seal_erasure(connection, one.id, index)


def _entry(one: Prepared, at: str) -> bytes:
    if one.job_index is None:
        if one.origin is not None:
            return import_entry(one.digest, at, one.origin)
        return job_entry(one.digest, at)
    if one.kind is LogKind.REVIEW:
        return review_entry(one.job_index, one.digest, at, one.origin)
    return erasure_entry(one.job_index, one.texts, one.digest, at, one.origin)


def _origin(row: Job | Review | Erasure) -> str | None:
    """Return the hash of the proof that a record was imported with; None if it came with none."""
    return None if row.origin_proof is None else proof_hash(row.origin_proof)


def _grow(connection: sa.Connection, size: int, leaves: list[bytes], signer: Signer) -> str:
    """Add leaves to the tree of ``size`` leaves, and sign the new one; return the signed checkpoint."""

    def read(level: int, index: int) -> bytes:
        return log.get_tile(connection, level, index)

    changed = tiles.append(size, leaves, read)
    for (level, index), hashes in changed.items():
        log.set_tile(connection, level, index, hashes)
    size += len(leaves)
    log.set_size(connection, size)
    return sign(connection, size, signer)
