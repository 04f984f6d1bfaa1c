"""The jobs of an owner or with metadata, a step at a time: what is erased or deleted in one go.

They are read from the table of jobs and not from the search index, so that none is missing, whatever its status.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from jobs.database import Database
from jobs.errors import UserError
from jobs.statements import job_lists
from jobs.statements.job_lists import Place
from jobs.times import from_microseconds, microseconds

#: The jobs that one step looks at.
MAX_READ = 500


class StepCursorError(UserError):
    """A cursor is not one that a step returned."""

    def __init__(self) -> None:
        super().__init__("`after` must be what the reply before has as `after`.")


class Step(NamedTuple):
    """What a step found."""

    #: Of the jobs that match, the oldest first.
    ids: list[str]
    #: Where the next step begins; None after the last one.
    after: str | None


def find(
    database: Database,
    owner: str | None,
    metadata: dict[str, str],
    after: str | None,
    limit: int = MAX_READ,
) -> Step:
    """Find up to ``limit`` jobs among the next `MAX_READ` of an owner, the oldest first.

    Args:
        database: of the jobs.
        owner: of the jobs; None for all.
        metadata: pairs that the jobs have, besides others.
        after: where the step before ended; None for the first one.
        limit: the maximum number of jobs that are found.

    Raises:
        StepCursorError: ``after`` is not what a step returned.
    """
    place = None if after is None else _parse(after)
    with database.read() as connection:
        rows = job_lists.list_from(connection, owner, place, MAX_READ)
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
        raise StepCursorError
    return Place(from_microseconds(int(match[1])), match[2])
