"""Jobs with all that their histories have, loaded a bounded number of characters at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

import sqlalchemy as sa
from sqlalchemy.orm import Session, selectinload, undefer

from jobs.models import Attempt, Job

#: The characters of what clients sent that are in memory together. A request of 1 MiB may take 25 times as much as
#: Python's lists and objects, and a hundred of them end at once.
MAX_SIZE = 1 << 22
_SIZE = sa.func.length(Job.question) + sa.func.coalesce(
    sa.func.length(Job.input_items, type_=sa.Integer), 0, type_=sa.Integer
)
#: Loads all that the histories of jobs have.
_HISTORY = (
    undefer(Job.input_items),
    selectinload(Job.attempts).selectinload(Attempt.worker),
    selectinload(Job.reviews),
    selectinload(Job.erasures),
)


def parts(connection: sa.Connection, job_ids: Iterable[str]) -> list[list[str]]:
    """Divide jobs into parts whose histories may be in memory together: up to `MAX_SIZE`, or one job that is larger.

    Returns:
        the ids in their order, those of jobs that are gone included.
    """
    ids = list(dict.fromkeys(job_ids))
    query = sa.select(Job.id, _SIZE).where(Job.id.in_(ids))
    sizes: dict[str, int] = dict(connection.execute(query).all()) if ids else {}
    found: list[list[str]] = []
    size = MAX_SIZE
    for job_id in ids:
        size += sizes.get(job_id, 0)
        if size > MAX_SIZE or not found:
            found.append([])
            size = sizes.get(job_id, 0)
        found[-1].append(job_id)
    return found


def load_in_parts(session: Session, job_ids: Iterable[str]) -> Iterator[Job]:
    """Yield jobs in the order of their ids, with all that their histories have; forget each part before the next one."""
    for part in parts(session.connection(), job_ids):
        loaded = load(session, part)
        yield from (loaded[job_id] for job_id in part if job_id in loaded)
        session.expunge_all()


def load(session: Session, job_ids: Collection[str]) -> dict[str, Job]:
    """Return jobs by their ids, with all that their histories have. Those that are gone are left out."""
    query = sa.select(Job).where(Job.id.in_(job_ids)).options(*_HISTORY)
    return {job.id: job for job in session.scalars(query)}
