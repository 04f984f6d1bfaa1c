"""Sealing: ended jobs, reviews, erasures and deletions get their entries in the log, and checkpoints sign it.

Appending is one transaction that holds the log's lock: the jobs' places, the entries, the tiles and the
checkpoint are committed together. So a process may die at any time, and several may seal at once: nothing is
lost, nothing is appended twice, and there is one log. What takes long, reading and hashing the histories,
comes before it. An ended job never changes but for erasures, which change no digest, so that what was read is
still right. Reviews and erasures follow the entry of their job, and name it.

A log that does not continue the newest checkpoint that this machine kept is not signed: its database was restored from an
older backup. `begin_new_log` lets it go on under a new name.
"""

from __future__ import annotations

import datetime as dt
import secrets
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import sqlalchemy as sa

from jobs.database import Database
from jobs.errors import LogKeyError, LogSetBackError
from jobs.kept_checkpoint import KeptCheckpoint
from jobs.models import Erasure, Job, LogKind, Review
from jobs.statements import log, log_checkpoints
from jobs.times import rfc3339
from jobs.tlog import merkle, tiles
from jobs.tlog.checkpoint import Checkpoint
from jobs.tlog.entry import deletion_entry, erasure_entry, import_entry, job_entry, review_entry
from jobs.tlog.exported import proof_hash
from jobs.tlog.note import Signer, Verifier
from jobs.tlog.record import digest
from jobs.tlog.salted import new_salt
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
    #: The newest checkpoint that this machine knows; None to keep none.
    kept: KeptCheckpoint | None = None

    @classmethod
    def of(cls, key: str | None, origin: str | None, data_dir: Path | None = None) -> Signing:
        """Return what the settings give."""
        kept = KeptCheckpoint(data_dir) if data_dir is not None else None
        return cls(Signer.parse(key) if key else None, origin, kept)


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
        prepared = [_ended(job, describe) for job in log.load_in_parts(session, ended)]
        added: dict[Any, Prepared] = {}
        for job in log.load_in_parts(session, [row.job_id for row in (*reviews, *erasures)]):
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
        signer = _signer(connection, origin, signing)
        if signing.kept is not None:
            # Within the lock: nobody signs more meanwhile.
            _require_continued(connection, signer.name, size, signing.kept.read())
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


def keep_newest(database: Database, kept: KeptCheckpoint) -> None:
    """Keep the newest checkpoint, whichever process signed it.

    Raises:
        LogSetBackError: the log does not continue the checkpoint that this machine kept.
    """
    newest = require_continued(database, kept)
    if newest is not None:
        kept.keep(newest)


def require_continued(database: Database, kept: KeptCheckpoint) -> str | None:
    """Return the log's newest checkpoint; None if it has none.

    Raises:
        LogSetBackError: the log does not continue the checkpoint that this machine kept.
    """
    known = kept.read()  # First: what was signed before is in the database that is read then.
    with database.read() as connection:
        origin, size = log.state(connection)
        _require_continued(connection, origin, size, known)
        newest = log_checkpoints.newest_checkpoint(connection)
        return newest and newest.note


@retry_on_conflict
def begin_new_log(database: Database, signing: Signing) -> Verifier:
    """Continue the log under a new name, and sign it with a new key; return its public key.

    All entries stay. The checkpoints and cosignatures of the old name are deleted: they are kept by those who need them.

    Args:
        database: of the log.
        signing: the new key or the new name; without either, both are made.

    Raises:
        LogKeyError: the log has no name yet, or the key or name that was given is its old one.
    """
    with database.write() as connection:
        old, size, _ = log.lock(connection)
        if old is None:
            raise LogKeyError("the log has no name yet: it gets one with its first entry")
        key, wanted, _ = signing
        if old in (wanted, key and key.name):
            raise LogKeyError(
                f"the log is {old} already: set HELIXQ_LOG_ORIGIN to a new name or unset it, and HELIXQ_LOG_KEY to a "
                "key of the new name (`helixq jobs log-key --new`) or unset it"
            )
        if key is not None and wanted not in (None, key.name):
            raise LogKeyError(
                f"HELIXQ_LOG_KEY is a key of {key.name}, and HELIXQ_LOG_ORIGIN is {wanted}"
            )
        signer = key or Signer.generate(wanted or _new_origin())
        log_checkpoints.forget_checkpoints(connection)
        log.set_origin(connection, signer.name)
        log.add_key(connection, str(signer.verifier), signer.private if key is None else None)
        if size:
            _sign(connection, size, signer)
        return signer.verifier


def _require_continued(
    connection: sa.Connection, origin: str | None, size: int, known: Checkpoint | None
) -> None:
    """Refuse a log that does not continue the checkpoint that was kept."""
    if known is None or known.origin != origin:
        return
    if known.size > size:
        differs = f"{known.size} entries were signed, and the database has {size}"
    elif merkle.root(known.size, log.nodes(connection)) != known.root:
        differs = f"the first {known.size} entries are others than those that were signed"
    else:
        return
    raise LogSetBackError(
        f"the log {origin} was set back: {differs} (HELIXQ_DATA_DIR/log-checkpoint). "
        "If an older backup was restored, restore a newer one, or run `helixq jobs new-log`: the log goes on under a new name"
    )


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


def _grow(connection: sa.Connection, size: int, leaves: list[bytes], signer: Signer) -> str:
    """Add leaves to the tree of ``size`` leaves, and sign the new one; return the signed checkpoint."""

    def read(level: int, index: int) -> bytes:
        return log.get_tile(connection, level, index)

    changed = tiles.append(size, leaves, read)
    for (level, index), hashes in changed.items():
        log.set_tile(connection, level, index, hashes)
    size += len(leaves)
    log.set_size(connection, size)
    return _sign(connection, size, signer)


def _sign(connection: sa.Connection, size: int, signer: Signer) -> str:
    """Sign the tree of ``size`` leaves; return the signed checkpoint."""
    root = merkle.root(size, log.nodes(connection))
    note = Checkpoint(signer.name, size, root).sign(signer)
    log_checkpoints.add_checkpoint(connection, size, note)
    return note


def _new_origin() -> str:
    return f"helixq/{secrets.token_hex(8)}"


def check_signing(database: Database, signing: Signing) -> None:
    """Check that a process with these keys can sign the log as it is.

    Raises:
        LogKeyError: it cannot.
    """
    if signing.kept is not None:
        require_continued(database, signing.kept)
    with database.read() as connection:
        origin = log.state(connection).origin
        if origin is not None:
            _check_signing(origin, log.keys(connection), signing)


def _check_signing(
    origin: str, keys: Sequence[sa.Row[str, bytes | None]], signing: Signing
) -> None:
    key, wanted, _ = signing
    if wanted not in (None, origin):
        raise LogKeyError(
            f"HELIXQ_LOG_ORIGIN is {wanted}, and the log is {origin} for good: unset it"
        )
    if key is None:
        if keys and keys[-1].private is None:
            raise LogKeyError(
                "the log is signed with a HELIXQ_LOG_KEY: give it to this process too"
            )
    elif key.name != origin:
        raise LogKeyError(
            f"HELIXQ_LOG_KEY is a key of {key.name}, and the log is {origin}: set its key"
        )
    elif str(key.verifier) in [row.verifier for row in keys[:-1]]:
        raise LogKeyError("HELIXQ_LOG_KEY is an old key of the log: give this process the newest")


def _signer(connection: sa.Connection, origin: str | None, signing: Signing) -> Signer:
    """Return the key that signs the log; name the log and make a key if it has none."""
    key, wanted, _ = signing
    if origin is None:
        origin = wanted or (key.name if key else _new_origin())
        log.set_origin(connection, origin)
    keys = log.keys(connection)
    _check_signing(origin, keys, signing)
    if key is None and keys and (private := keys[-1].private) is not None:
        return Signer(origin, private)
    signer = key or Signer.generate(origin)
    if not keys or keys[-1].verifier != str(signer.verifier):
        log.add_key(connection, str(signer.verifier), signer.private if key is None else None)
    return signer
