"""Reading the transparency log: checkpoints, tiles, entries, keys, and the proofs of jobs."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import sqlalchemy as sa

from jobs.database import Database
from jobs.errors import NotImportedError, NotSealedError
from jobs.models import Job
from jobs.statements import jobs, log
from jobs.tlog import merkle, tiles
from jobs.tlog.checkpoint import Checkpoint
from jobs.tlog.merkle import HASH_SIZE
from jobs.tlog.note import Note, Verifier
from jobs.tlog.proof import Proof
from jobs.tlog.tiles import WIDTH, Tile


def prove(database: Database, owner: str | None, job_id: str) -> Proof:
    """Return the proof that a job's entry is in the log, with the entry as its extra data.

    Raises:
        JobNotFoundError: the owner has no such job.
        NotSealedError: the job has no entry yet.
    """
    with database.read_session() as session:
        job = jobs.get(session, owner, job_id)
        proofs = prove_all(session.connection(), [job])
    if job_id not in proofs:
        raise NotSealedError(job_id, ended=job.status.final)
    return proofs[job_id]


def prove_all(connection: sa.Connection, jobs: Iterable[Job]) -> dict[str, Proof]:
    """Return the proofs of jobs by their ids, all with the newest checkpoint. Jobs without an entry are left out."""
    note = log.get_checkpoint(connection)
    places = {job.log_index: job.id for job in jobs if job.log_index is not None}
    if note is None or not places:
        return {}
    size = Checkpoint.parse(Note.parse(note).text).size
    nodes = tiles.nodes(cache(lambda level, index: log.get_tile(connection, level, index)))
    return {
        places[row.entry_index]: Proof(
            row.entry_index, merkle.inclusion_proof(row.entry_index, size, nodes), note, row.entry
        )
        for row in log.get_entries(connection, places)
    }


def origin_proof(database: Database, owner: str | None, job_id: str) -> Proof:
    """Return the proof that an imported job came with.

    Raises:
        JobNotFoundError: the owner has no such job.
        NotImportedError: the job ended here.
    """
    with database.read_session() as session:
        job = jobs.get(session, owner, job_id)
    if job.origin_proof is None:
        raise NotImportedError(job_id)
    return Proof.parse(job.origin_proof)


def get_checkpoint(database: Database) -> str | None:
    """Return the newest checkpoint, a signed note; None if the log is empty."""
    with database.read() as connection:
        return log.get_checkpoint(connection)


def get_tile(database: Database, level: int, tile: Tile) -> bytes | None:
    """Return the hashes of a tile; None if the tree has not so many."""
    with database.read() as connection:
        hashes = log.get_tile(connection, level, tile.number)
    size = tile.width * HASH_SIZE
    return hashes[:size] if len(hashes) >= size else None


def get_bundle(database: Database, tile: Tile) -> bytes | None:
    """Return the entries of a tile of level 0 as a bundle; None if the log has not so many."""
    start = tile.number * WIDTH
    with database.read() as connection:
        rows = log.list_entries(connection, start, start + tile.width)
    return tiles.bundle(row.entry for row in rows) if len(rows) == tile.width else None


def list_keys(database: Database) -> list[Verifier]:
    """Return the log's keys, the oldest first; the last one signs."""
    with database.read() as connection:
        return [Verifier.parse(row.verifier) for row in log.keys(connection)]
