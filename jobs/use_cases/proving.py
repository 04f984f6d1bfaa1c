"""Reading the transparency log: checkpoints, tiles, entries, keys, and the proofs of jobs."""

from __future__ import annotations

from jobs.database import Database
from jobs.errors import NotSealedError
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
        connection = session.connection()
        note = log.get_checkpoint(connection)
        if job.log_index is None or note is None:
            raise NotSealedError(job_id, ended=job.status.final)
        size = Checkpoint.parse(Note.parse(note).text).size
        nodes = tiles.nodes(lambda level, index: log.get_tile(connection, level, index))
        hashes = merkle.inclusion_proof(job.log_index, size, nodes)
        [entry] = log.list_entries(connection, job.log_index, job.log_index + 1)
        return Proof(job.log_index, hashes, note, entry.entry)


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
