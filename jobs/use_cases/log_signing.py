"""Signing the log: its name, its keys, and the newest checkpoint that this machine kept.

A log that does not continue the checkpoint that was kept is not signed: its database was restored from an older backup.
`begin_new_log` lets it go on under a new name.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import sqlalchemy as sa

from jobs.database import Database
from jobs.errors import LogKeyError, LogSetBackError
from jobs.kept_checkpoint import KeptCheckpoint
from jobs.statements import log, log_checkpoints
from jobs.tlog import merkle
from jobs.tlog.checkpoint import Checkpoint
from jobs.tlog.note import Signer, Verifier
from jobs.transient import retry_on_conflict


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


def signer_of(connection: sa.Connection, origin: str | None, signing: Signing) -> Signer:
    """Return the key that signs the log; name the log and make a key if it has none.

    Raises:
        LogKeyError: this process cannot sign the log.
    """
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


def sign(connection: sa.Connection, size: int, signer: Signer) -> str:
    """Sign the tree of ``size`` leaves; return the signed checkpoint."""
    root = merkle.root(size, log.nodes(connection))
    note = Checkpoint(signer.name, size, root).sign(signer)
    log_checkpoints.add_checkpoint(connection, size, note)
    return note


def check_continued(
    connection: sa.Connection, origin: str | None, size: int, known: Checkpoint | None
) -> None:
    """Check that a log continues the checkpoint that was kept.

    Args:
        connection: of the unit of work.
        origin, size: of the log.
        known: the checkpoint; None if none was kept.

    Raises:
        LogSetBackError: it does not.
    """
    if known is None or known.origin != origin:
        return
    if known.size > size:
        differs = f"{known.size} entries were signed, and the database has {size}"
    elif merkle.root(known.size, log.nodes(connection)) != known.root:
        differs = f"the first {known.size} entries are not the ones that were signed"
    else:
        return
    raise LogSetBackError(
        f"the log {origin} was set back: {differs} (HELIXQ_DATA_DIR/log-checkpoint). "
        "If an older backup was restored, restore a newer one, or run `helixq jobs new-log`: the log goes on under a new name"
    )


def check_signing(database: Database, signing: Signing) -> None:
    """Check that a process with these keys can sign the log as it is.

    Raises:
        LogKeyError: it cannot.
        LogSetBackError: the log does not continue the checkpoint that this machine kept.
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
        check_continued(connection, origin, size, known)
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
            sign(connection, size, signer)
        return signer.verifier


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


def _new_origin() -> str:
    return f"helixq/{secrets.token_hex(8)}"
