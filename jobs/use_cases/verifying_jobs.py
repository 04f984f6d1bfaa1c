"""Verifying one job: whether it is what the log recorded, and whether the log has it.

`jobs.use_cases.verifying` compares the whole database, which takes long. This compares one job, its reviews and its
erasures with their entries, and proves that each entry is in the newest checkpoint that the log's key signed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import sqlalchemy as sa

from jobs.database import Database
from jobs.statements import jobs, log, log_checkpoints
from jobs.tlog import merkle
from jobs.tlog.checkpoint import Checkpoint, open_checkpoint
from jobs.tlog.entry import parse_entry
from jobs.tlog.merkle import ProofError
from jobs.tlog.note import NoteError, Verifier
from jobs.tlog.record import claimed_entry, misfit
from jobs.use_cases.sealing import Describe


@dataclass(frozen=True)
class Verdict:
    """Whether a job is what the log recorded."""

    #: ``verified``, ``unsealed`` or ``differs``.
    outcome: str
    #: What differs, as a sentence.
    reason: str | None = None
    #: The checkpoint: the log's name and its number of entries.
    origin: str | None = None
    size: int | None = None
    #: Reviews and erasures that were compared, and those that the log does not have yet.
    compared: int = 0
    pending: int = 0


class _Record(NamedTuple):
    """A job, a review or an erasure: its name in messages, its part of the history, and the entry that it claims."""

    name: str
    fields: dict[str, Any]
    entry: int | None


class _DiffersError(Exception):
    """Something is not what the log recorded. The message says what."""


def verify_job(database: Database, owner: str | None, job_id: str, describe: Describe) -> Verdict:
    """Compare a job with the log. The keys are those that the database names.

    Args:
        database: of the job.
        owner: of the job; None for any.
        job_id: of the job.
        describe: returns the history of a job.

    Raises:
        JobNotFoundError: the owner has no such job.
    """
    with database.read_session() as session:
        job = jobs.get(session, owner, job_id, with_history=True)
        connection = session.connection()
        history = describe(job)
        newest = log_checkpoints.newest_checkpoint(connection)
        if job.log_index is None or newest is None:
            return Verdict("unsealed")
        records: list[_Record] = [_Record("the job", history, job.log_index)]
        records += [_Record(f"review {r['id']}", r, claimed_entry(r)) for r in history["reviews"]]
        records += [
            _Record(f"the erasure of {r['at']}", r, claimed_entry(r)) for r in history["erasures"]
        ]
        sealed = [(r.entry, r) for r in records if r.entry is not None]
        try:
            keys = [Verifier.parse(row.verifier) for row in log.keys(connection)]
            checkpoint = open_checkpoint(newest.note, keys)
            _compare(connection, sealed, checkpoint)
            if (reason := misfit(history)) is not None:
                raise _DiffersError(f"The job was changed: {reason}.")
        except _DiffersError as error:
            return Verdict("differs", str(error))
        except (NoteError, ProofError, ValueError, LookupError) as error:
            return Verdict("differs", f"The log itself does not fit: {error}")
    return Verdict(
        "verified",
        None,
        checkpoint.origin,
        checkpoint.size,
        compared=len(sealed) - 1,
        pending=len(records) - len(sealed),
    )


def _compare(
    connection: sa.Connection, claims: Sequence[tuple[int, _Record]], checkpoint: Checkpoint
) -> None:
    """Compare records with the entries that they claim, and these with the tree of a checkpoint.

    Raises:
        _DiffersError: a record is not that of its entry.
        ProofError: an entry is not in the tree.
    """
    nodes = log.nodes(connection)
    rows = log.get_entries(connection, [index for index, _ in claims])
    entries = {row.entry_index: row.entry for row in rows}
    for index, record in claims:
        if index not in entries:
            raise _DiffersError(f"The log has no entry {index}, which {record.name} claims.")
        entry = entries[index]
        merkle.verify_inclusion(
            merkle.leaf_hash(entry),
            index,
            checkpoint.size,
            merkle.inclusion_proof(index, checkpoint.size, nodes),
            checkpoint.root,
        )
        if parse_entry(entry).get("digest") != record.fields["digest"]:
            name = f"{record.name[0].upper()}{record.name[1:]}"
            raise _DiffersError(f"{name} was changed: entry {index} differs.")
