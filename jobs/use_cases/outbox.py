"""The outbox: stages that are ready and have no message in Redis."""

from __future__ import annotations

from collections.abc import Sequence

from jobs.database import Database
from jobs.pipeline import NextStage
from jobs.statements import outbox, pauses

#: The maximum number of jobs that a sweep publishes at once.
MAX_TAKEN = 100


def mark_unpublished(database: Database, job_id: str, stage_index: int) -> None:
    """Note that a stage has no message: a sweep publishes it."""
    with database.write() as connection:
        outbox.mark_unpublished(connection, [(job_id, stage_index)])


def take_unpublished(database: Database, *, queue_empty: bool, model: str) -> list[NextStage]:
    """Take jobs out of the outbox, to publish them: up to `MAX_TAKEN`.

    These are the jobs that were never published, or were released or taken back; that have begun and do
    not continue, although such jobs go first; that were overtaken by a question that came later; and
    those that nobody claimed although Redis has no messages, or for so long that nobody can tell why. A
    duplicate message does no harm. While the queue is paused, there are none, since nobody would claim them.

    They count as published from now on, so that only one of several sweeps takes each.

    Args:
        database: of the jobs.
        queue_empty: whether Redis has no messages of questions.
        model: of the jobs to take, besides those without a model. Workers publish only what they can
            run: messages for a model that no worker has would pile up.

    Returns:
        the jobs, in the order in which to publish them.
    """
    # As a rule there is nothing to do, which should lock nothing.
    with database.read() as connection:
        if pauses.is_paused(connection):
            return []
        ids = outbox.find(connection, queue_empty=queue_empty, model=model, limit=MAX_TAKEN)
    if not ids:
        return []
    with database.write() as connection:
        return outbox.take(connection, ids)


def put_back(database: Database, stages: Sequence[NextStage]) -> None:
    """Put stages back that count as published and could not be."""
    with database.write() as connection:
        outbox.mark_unpublished(connection, [(each.job_id, each.stage_index) for each in stages])
