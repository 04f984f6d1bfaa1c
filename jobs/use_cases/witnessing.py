"""Witnessing: others cosign the log's checkpoints (c2sp.org/tlog-witness).

One process asks a witness at a time: it takes the witness's row for as long as a reply may take. Sealing waits for none of
it. A witness that failed is asked again later, and then about the newest checkpoint only.
"""

from __future__ import annotations

from typing import NamedTuple

from jobs.backoff import BACKOFF
from jobs.database import Database
from jobs.statements import log, log_checkpoints
from jobs.tlog import merkle


class Asking(NamedTuple):
    """What a witness is to be asked to cosign."""

    #: The checkpoint, signed by the log.
    note: str
    size: int
    #: The number of entries of the tree that the witness has cosigned last, as far as is known.
    old_size: int
    failures: int


def begin_asking(database: Database, witness: str, seconds: float) -> Asking | None:
    """Return what a witness is to be asked now; None if it has cosigned the newest checkpoint, or is not to be asked.

    Args:
        database: of the log.
        witness: its label (`jobs.tlog.cosignature.Cosigner`).
        seconds: for how long nobody else asks it.
    """
    with database.read() as connection:
        newest = log_checkpoints.newest_checkpoint(connection)
        if newest is None or log_checkpoints.is_cosigned(connection, newest.size, witness):
            return None
    with database.write() as connection:
        log_checkpoints.add_witness(connection, witness)
        row = log_checkpoints.take_witness(connection, witness, seconds, BACKOFF.most)
    if row is None:
        return None
    # Where the database was restored from a backup, the witness has seen more.
    return Asking(newest.note, newest.size, min(row.size, newest.size), row.failures)


def prove_consistency(database: Database, old_size: int, size: int) -> list[bytes]:
    """Return the proof that the log of ``size`` entries continues that of ``old_size``."""
    with database.read() as connection:
        nodes = log.nodes(connection)
        return merkle.consistency_proof(old_size, size, nodes)


def cosigned(database: Database, witness: str, size: int, line: str) -> None:
    """Note that a witness has cosigned the checkpoint of a size.

    Args:
        database: of the log.
        witness: its label.
        size: of the checkpoint.
        line: of its signature.
    """
    with database.write() as connection:
        log_checkpoints.add_cosignature(connection, size, witness, line)
        log_checkpoints.set_witness(connection, witness, seconds=0, size=size, failures=0)


def failed(database: Database, witness: str, size: int, failures: int) -> None:
    """Note that a witness has not cosigned, so that it is asked again later.

    Args:
        database: of the log.
        witness: its label.
        size: of the tree that it has cosigned last, as far as is known.
        failures: how often in a row it has not, this time included.
    """
    with database.write() as connection:
        log_checkpoints.set_witness(
            connection, witness, seconds=BACKOFF.delay(failures), size=size, failures=failures
        )
