"""Reading the transparency log: checkpoints, tiles, entries, keys, and the proofs of jobs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from enum import StrEnum

import sqlalchemy as sa

from jobs.database import Database
from jobs.errors import NotImportedError, NotSealedError, PartNotFoundError
from jobs.models import Erasure, Job, Review
from jobs.statements import jobs, log, log_checkpoints
from jobs.tlog import merkle, tiles
from jobs.tlog.checkpoint import Checkpoint
from jobs.tlog.merkle import HASH_SIZE
from jobs.tlog.note import Note, Verifier
from jobs.tlog.proof import Proof
from jobs.tlog.tiles import WIDTH, Tile

#: Seconds for which a checkpoint that witnesses have cosigned is shown rather than a newer one. A busy log grows
#: every second, and witnesses take a moment.
MAX_AGE = 60.0


class Part(StrEnum):
    """The parts of a job that have entries of their own."""

    REVIEW = "review"
    ERASURE = "erasure"


def prove(
    database: Database, owner: str | None, job_id: str, part: Part | None = None, number: int = 0
) -> Proof:
    """Return the proof that an entry of a job is in the log, with the entry as its extra data.

    Args:
        database: of the jobs.
        owner: whose jobs may be read; None for all.
        job_id: of the job.
        part: None for the end of the job.
        number: which review or erasure, from 0 on.

    Raises:
        JobNotFoundError: the owner has no such job.
        PartNotFoundError: the job has no such review or erasure.
        NotSealedError: there is no entry yet.
    """
    with database.read_session() as session:
        job = jobs.get(session, owner, job_id, with_history=part is not None)
        index, ended = _row(job, part, number).log_index, job.status.final
        proofs = [] if index is None else prove_entries(session.connection(), [index])
    if not proofs:
        raise NotSealedError(_name(job_id, part, number), ended=ended)
    return proofs[0]


def _row(job: Job, part: Part | None, number: int) -> Job | Review | Erasure:
    if part is None:
        return job
    of_job: Sequence[Review | Erasure] = job.reviews if part is Part.REVIEW else job.erasures
    if number >= len(of_job):
        raise PartNotFoundError(job.id, part, number, len(of_job))
    return of_job[number]


def _name(job_id: str, part: Part | None, number: int) -> str:
    return job_id if part is None else f"The {part} {number} of {job_id}"


def prove_all(connection: sa.Connection, jobs: Iterable[Job]) -> dict[int, Proof]:
    """Return the proofs of the entries of jobs, of their reviews and of their erasures, by their places in the log.

    Args:
        connection: in any transaction.
        jobs: with their reviews and erasures loaded.
    """
    places = [
        index
        for job in jobs
        for index in (
            job.log_index,
            *(review.log_index for review in job.reviews),
            *(erasure.log_index for erasure in job.erasures),
        )
        if index is not None
    ]
    proofs = prove_entries(connection, places)
    return {proof.index: proof for proof in proofs}


def prove_entries(connection: sa.Connection, indexes: Collection[int]) -> list[Proof]:
    """Return the proofs of entries, each with the newest of the checkpoints that have the most cosignatures.

    Entries that no checkpoint has are left out.
    """
    if not indexes:
        return []
    heads = [
        (Checkpoint.parse(Note.parse(note).text).size, note)
        # One that many witnesses have cosigned, and for entries that are too new for it, another.
        for least in (0, max(indexes) + 1)
        if (note := log_checkpoints.get_checkpoint(connection, least)) is not None
    ]
    nodes = log.nodes(connection)

    def proof(index: int, entry: bytes) -> Proof | None:
        for size, note in heads:
            if index < size:
                return Proof(index, merkle.inclusion_proof(index, size, nodes), note, entry)
        return None

    proofs = [proof(*row) for row in log.get_entries(connection, indexes)]
    return [each for each in proofs if each is not None]


def origin_proof(
    database: Database, owner: str | None, job_id: str, part: Part | None = None, number: int = 0
) -> Proof:
    """Return the proof that an imported job, or a review or an erasure of one, came with.

    Args:
        database, owner, job_id, part, number: as for `prove`.

    Raises:
        JobNotFoundError: the owner has no such job.
        PartNotFoundError: the job has no such review or erasure.
        NotImportedError: it was made here, or came without a proof.
    """
    with database.read_session() as session:
        job = jobs.get(session, owner, job_id, with_history=part is not None)
        proof = _row(job, part, number).origin_proof
    if proof is None:
        raise NotImportedError(_name(job_id, part, number))
    return Proof.parse(proof)


def get_checkpoint(database: Database) -> str | None:
    """Return the log's checkpoint, a signed note; None if the log is empty.

    It is the newest one that has the most cosignatures, but none that is `MAX_AGE` old if there is a newer one.
    """
    with database.read() as connection:
        return log_checkpoints.get_checkpoint(connection, max_age=MAX_AGE)


def get_tile(database: Database, level: int, tile: Tile) -> bytes | None:
    """Return the hashes of a tile; None if the tree does not have it yet."""
    with database.read() as connection:
        hashes = log.get_tile(connection, level, tile.number)
    size = tile.width * HASH_SIZE
    return hashes[:size] if len(hashes) >= size else None


def get_bundle(database: Database, tile: Tile) -> bytes | None:
    """Return the entries of a tile of level 0 as a bundle; None if the log does not have them yet."""
    start = tile.number * WIDTH
    with database.read() as connection:
        rows = log.list_entries(connection, start, start + tile.width)
    return tiles.bundle(row.entry for row in rows) if len(rows) == tile.width else None


def list_keys(database: Database) -> list[Verifier]:
    """Return the log's keys, the oldest first; the last one signs."""
    with database.read() as connection:
        return [Verifier.parse(row.verifier) for row in log.keys(connection)]
