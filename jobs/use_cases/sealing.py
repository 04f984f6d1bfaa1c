"""Sealing: ended jobs get their entries in the transparency log, and checkpoints sign it.

Appending is one transaction that holds the log's lock: the jobs' places, the entries, the tiles and the
checkpoint are committed together. So a process may die at any time, and several may seal at once: nothing is
lost, nothing is appended twice, and there is one log. What takes long, reading and hashing the histories,
comes before it. An ended job never changes, so that what was read is still right.
"""

from __future__ import annotations

import datetime as dt
import secrets
from collections.abc import Callable
from typing import Any, NamedTuple

import sqlalchemy as sa

from jobs.database import Database
from jobs.errors import LogKeyError
from jobs.models import Job, LogKind
from jobs.statements import log
from jobs.tlog import merkle, tiles
from jobs.tlog.checkpoint import Checkpoint
from jobs.tlog.entry import deletion_entry, digest, import_entry, job_entry, new_salt
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
    """A job that is to be appended."""

    job_id: str
    salt: bytes
    #: Of its record.
    digest: str
    #: The hash of the proof that it came with, if it was imported.
    origin: str | None


def any_pending(database: Database) -> bool:
    """Return whether anything is to be appended to the log."""
    with database.read() as connection:
        return log.any_pending(connection)


def prepare(database: Database, describe: Describe, *, limit: int = MAX_JOBS) -> list[Prepared]:
    """Return ended jobs that have no entry yet, those that ended first, with the digests of their records.

    Args:
        database: of the jobs.
        describe: returns the history of a job.
        limit: the maximum number of jobs.
    """
    with database.read_session() as session:
        jobs = log.load_unsealed(session, limit)
    prepared = []
    for job in jobs:
        salt = job.log_salt or new_salt()  # An imported job keeps its salt, and so its digest.
        origin = job.origin_proof and proof_hash(job.origin_proof)
        prepared.append(Prepared(job.id, salt, digest(describe(job), salt), origin))
    return prepared


@retry_on_conflict
def append(
    database: Database, prepared: list[Prepared], signing: Signing, *, limit: int = MAX_JOBS
) -> int:
    """Append jobs and the deletions of jobs to the log, and sign it.

    Args:
        database: of the jobs.
        prepared: the jobs. Those that another process has appended, or that were deleted, are left out.
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

        for job in prepared:
            if log.seal_job(connection, job.job_id, size + len(rows), job.salt):
                entry = (
                    job_entry(job.digest, at)
                    if job.origin is None
                    else import_entry(job.digest, at, job.origin)
                )
                add(LogKind.JOB, job.job_id, entry)
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
