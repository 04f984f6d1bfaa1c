"""Reading the transparency log: checkpoints, tiles, entries, keys, and the proofs of jobs."""

from __future__ import annotations

from collections.abc import Collection, Iterable
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

#: Seconds for which a checkpoint that witnesses have cosigned is shown rather than a newer one. A busy log grows
#: every second, and witnesses take a moment.
MAX_AGE = 60.0


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
    """Return the proofs of jobs by their ids. Jobs without an entry are left out."""
    places = {job.log_index: job.id for job in jobs if job.log_index is not None}
    return {places[proof.index]: proof for proof in prove_entries(connection, places)}


def prove_entries(connection: sa.Connection, indexes: Collection[int]) -> list[Proof]:
    """Return the proofs of entries, each with the checkpoint that has the most cosignatures, and of several the newest.

    Entries that no checkpoint has are left out.
    """
    if not indexes:
        return []
    heads = [
        (Checkpoint.parse(Note.parse(note).text).size, note)
        # One that many witnesses have cosigned, and for entries that are too new for it, another.
        for least in (0, max(indexes) + 1)
        if (note := log.get_checkpoint(connection, least)) is not None
    ]
    nodes = tiles.nodes(cache(lambda level, index: log.get_tile(connection, level, index)))

    def proof(index: int, entry: bytes) -> Proof | None:
        for size, note in heads:
            if index < size:
                return Proof(index, merkle.inclusion_proof(index, size, nodes), note, entry)
        return None

    proofs = [proof(*row) for row in log.get_entries(connection, indexes)]
    return [each for each in proofs if each is not None]


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
    """Return the log's checkpoint, a signed note; None if the log is empty.

    It is the newest one that has the most cosignatures, but none that is `MAX_AGE` old if there is a newer one.
    """
    with database.read() as connection:
        return log.get_checkpoint(connection, max_age=MAX_AGE)


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
