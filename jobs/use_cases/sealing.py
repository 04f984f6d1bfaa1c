"""Sealing: ended jobs, reviews, erasures and deletions get their entries in the log, and checkpoints sign it.

Appending is one transaction that holds the log's lock: the jobs' places, the entries, the tiles and the
checkpoint are committed together. So a process may die at any time, and several may seal at once: nothing is
lost, nothing is appended twice, and there is one log. What takes long, reading and hashing the histories,
comes before it. An ended job never changes but for erasures, which change no digest, so that what was read is
still right. Reviews and erasures follow the entry of their job, and name it.
"""

from __future__ import annotations

import datetime as dt
import secrets
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa

from jobs.database import Database
from jobs.errors import LogKeyError
from jobs.models import Erasure, Job, LogKind, Review
from jobs.statements import log
from jobs.tlog import merkle, tiles
from jobs.tlog.checkpoint import Checkpoint
from jobs.tlog.entry import (
    deletion_entry,
    digest,
    erasure_entry,
    import_entry,
    job_entry,
    new_salt,
    review_entry,
)
from jobs.tlog.exported import proof_hash
from jobs.tlog.note import Signer, Verifier
from jobs.transient import retry_on_conflict

#: The maximum number of jobs of one transaction: nobody else can write to SQLite meanwhile.
MAX_JOBS = 100

#: Returns a job's history, as the API shows it (`jobs.protocol.history`).
Describe = Callable[[Job], dict[str, Any]]


class Signing(NamedTuple):
    """What a process was given to sign the log with."""

    #: `HELIXQ_LOG_KEY`; None for the key that the database keeps.
    key: Signer | None = None
    #: `HELIXQ_LOG_ORIGIN`; None for the name that the log has.
    origin: str | None = None

    @classmethod
    def of(cls, key: str | None, origin: str | None) -> Signing:
        """Return what the settings give."""
        return cls(Signer.parse(key) if key else None, origin)


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
        ended = log.load_unsealed(session, limit)
        reviews = log.find_unsealed_reviews(connection, limit)
        erasures = log.find_unsealed_erasures(connection, limit)
        changed = log.load_jobs(session, {row.job_id for row in (*reviews, *erasures)})
    prepared = []
    for job in ended:
        salt, history = job.log_salt, describe(job)
        said_of = history["digest"]  # An imported job keeps its salts, and so its digest.
        if said_of is None:
            salt = new_salt()
            said_of = digest(history, salt)
        prepared.append(
            Prepared(
                LogKind.JOB,
                job.id,
                job.id,
                said_of,
                salt,
                end=job.finished_at,
                origin=_origin(job),
            )
        )
    told = {job_id: describe(job) for job_id, job in changed.items()}
    for review_id, job_id in reviews:
        ids = [review.id for review in changed[job_id].reviews]
        number, index = ids.index(review_id), changed[job_id].log_index
        prepared.append(
            Prepared(
                LogKind.REVIEW,
                review_id,
                job_id,
                told[job_id]["reviews"][number]["digest"],
                job_index=index,
                origin=_origin(changed[job_id].reviews[number]),
            )
        )
    for erasure_id, job_id in erasures:
        places = [erasure.id for erasure in changed[job_id].erasures]
        number = places.index(erasure_id)
        said = told[job_id]["erasures"][number]
        index, erased = changed[job_id].log_index, said["texts"]
        prepared.append(
            Prepared(
                LogKind.ERASURE,
                erasure_id,
                job_id,
                said["digest"],
                job_index=index,
                texts=erased,
                origin=_origin(changed[job_id].erasures[number]),
            )
        )
    return prepared


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
    """
    with database.write() as connection:
        origin, size, now = log.lock(connection)
        signer = _signer(connection, origin, signing)
        at = _time(now)
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
            _grow(connection, size, leaves, signer)
        return len(rows)


@retry_on_conflict
def rotate_key(database: Database) -> Verifier:
    """Make a new key for the log, which signs from the next checkpoint on; return its public part.

    Raises:
        LogKeyError: the key is not kept in the database, or the log has none yet.
    """
    with database.write() as connection:
        origin = log.lock(connection).origin
        keys = log.keys(connection)
        if origin is None or not keys:
            raise LogKeyError("the log has no key yet: it gets one with its first entry")
        if keys[-1].private is None:
            raise LogKeyError(
                "the log's key is in HELIXQ_LOG_KEY: set that to a new one of `helixq jobs log-key --new`"
            )
        signer = Signer.generate(origin)
        log.add_key(connection, str(signer.verifier), signer.private)
        return signer.verifier


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


def _grow(connection: sa.Connection, size: int, leaves: list[bytes], signer: Signer) -> None:
    """Add leaves to the tree of ``size`` leaves, and sign the new one."""

    def read(level: int, index: int) -> bytes:
        return log.get_tile(connection, level, index)

    changed = tiles.append(size, leaves, read)
    for (level, index), hashes in changed.items():
        log.set_tile(connection, level, index, hashes)
    size += len(leaves)
    checkpoint = Checkpoint(signer.name, size, merkle.root(size, tiles.nodes(read)))
    log.add_checkpoint(connection, size, checkpoint.sign(signer))
    log.set_size(connection, size)


def _signer(connection: sa.Connection, origin: str | None, signing: Signing) -> Signer:
    """Return the key that signs the log; name the log and make a key if it has none."""
    key, wanted = signing
    if origin is None:
        origin = wanted or (key.name if key else f"helixq/{secrets.token_hex(8)}")
        log.set_origin(connection, origin)
    elif wanted not in (None, origin):
        raise LogKeyError(f"HELIXQ_LOG_ORIGIN is {wanted}, and the log is {origin} for good")
    keys = log.keys(connection)
    if key is None:
        if not keys:
            key = Signer.generate(origin)
            log.add_key(connection, str(key.verifier), key.private)
            return key
        private = keys[-1].private
        if private is None:
            raise LogKeyError(
                "the log is signed with a HELIXQ_LOG_KEY: give it to this process too"
            )
        return Signer(origin, private)
    if key.name != origin:
        raise LogKeyError(f"HELIXQ_LOG_KEY is a key of {key.name}, and the log is {origin}")
    verifiers = [row.verifier for row in keys]
    if (verifier := str(key.verifier)) not in verifiers:
        log.add_key(connection, verifier, None)
    elif verifier != verifiers[-1]:
        raise LogKeyError("HELIXQ_LOG_KEY is an old key of the log: give this process the newest")
    return key


def _time(time: dt.datetime) -> str:
    """Return a time as RFC 3339 in UTC with milliseconds."""
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")
