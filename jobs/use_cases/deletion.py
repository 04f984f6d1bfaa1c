"""Deleting jobs on request: one, or all of an owner or with metadata."""

from __future__ import annotations

import re
from typing import NamedTuple

from jobs.database import Database
from jobs.errors import JobNotFoundError, UserError
from jobs.statements import deletions, jobs, requests
from jobs.statements.job_lists import Place
from jobs.statements.requests import Keyed
from jobs.times import from_microseconds, microseconds
from jobs.transient import retry_on_conflict

#: Jobs that one step looks at, and deletes: nobody else can write to SQLite meanwhile.
MAX_READ, MAX_DELETED = 500, 100


class DeletionCursorError(UserError):
    """A cursor is not one that a step returned."""

    def __init__(self) -> None:
        super().__init__("`after` must be what the reply before has as `after`.")


class Step(NamedTuple):
    """What a step of a deletion found."""

    #: The jobs that match, and were deleted unless it was a dry run.
    ids: list[str]
    #: Where the next step begins; None after the last one.
    after: str | None


@retry_on_conflict
def delete(database: Database, owner: str | None, job_id: str) -> None:
    """Delete a job with all its attempts, whatever its status.

    A worker that runs one of its stages has lost the lease with the row: it stops within a second, and
    records nothing.

    Raises:
        JobNotFoundError: the owner has no such job.
    """
    jobs.check_id(job_id)
    with database.write() as connection:
        if not deletions.delete(connection, owner, job_id):
            raise JobNotFoundError(job_id)


@retry_on_conflict
def delete_matching(
    database: Database,
    owner: str | None,
    metadata: dict[str, str],
    *,
    after: str | None,
    dry_run: bool = False,
    keyed: Keyed | None = None,
) -> Step:
    """Delete the next jobs of an owner that have some metadata, the oldest first, whatever their status.

    It is one step: it looks at the next `MAX_READ` jobs of the owner's index, and deletes up to `MAX_DELETED`.

    Args:
        database: of the jobs.
        owner: of the jobs; None for all.
        metadata: pairs that the jobs have, besides others.
        after: where the step before ended; None for the first one.
        dry_run: whether to delete nothing.
        keyed: the request, if it has an idempotency key.

    Returns:
        what this step found, or the same request before.

    Raises:
        DeletionCursorError: ``after`` is not what a step returned.
        IdempotencyError: the key was used for a different request.
    """
    place = None if after is None else _parse(after)
    step = _find(database, owner, metadata, place, MAX_READ if dry_run else MAX_DELETED)
    if dry_run or not (step.ids or keyed):
        return step
    with database.write() as connection:
        before = requests.begin(connection, keyed)
        if before is not None:
            return Step(before["ids"], before["after"])
        deletions.delete_all(connection, step.ids)
        requests.end(connection, keyed, **step._asdict())
    return step


def _find(
    database: Database,
    owner: str | None,
    metadata: dict[str, str],
    place: Place | None,
    limit: int,
) -> Step:
    """Find up to ``limit`` jobs among the next `MAX_READ`."""
    with database.read() as connection:
        rows = deletions.list_from(connection, owner, place, MAX_READ)
    ids: list[str] = []
    for count, row in enumerate(rows, 1):
        if metadata.items() <= row.pairs.items():
            ids.append(row.id)
        if len(ids) == limit:
            rows = rows[:count]
            break
    ended = len(rows) < MAX_READ and len(ids) < limit
    if not rows or ended:
        return Step(ids, None)
    return Step(ids, f"{microseconds(rows[-1].created_at)}-{rows[-1].id}")


def _parse(after: str) -> Place:
    match = re.fullmatch(r"(\d{1,17})-(resp_[0-9a-z]{1,32})", after, re.ASCII)
    if match is None:
        raise DeletionCursorError
    return Place(from_microseconds(int(match[1])), match[2])
