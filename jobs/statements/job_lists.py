"""Lists of jobs in the order of creation, and the places of jobs in it.

A list goes on from a place and not from a row, which may be deleted meanwhile. The owner None stands for all owners.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.orm import Session
from sqlalchemy.orm.interfaces import ORMOption

from jobs.column_types import UTCDateTime
from jobs.errors import JobNotFoundError
from jobs.models import Job, Status
from jobs.statements.jobs import IndexedFilters, check_id
from jobs.statements.owners import is_owned


class Place(NamedTuple):
    """A job's place in the order of creation."""

    created_at: dt.datetime
    job_id: str


#: The places of jobs.
KEY = sa.tuple_(Job.created_at, Job.id)


def cursor(place: Place) -> sa.Tuple:
    """Return a place, to be compared with `KEY`."""
    return sa.tuple_(sa.literal(place.created_at, UTCDateTime()), sa.literal(place.job_id))


def place_of(connection: sa.Connection, owner: str | None, job_id: str) -> Place:
    """Return the place of an owner's job in the order of creation.

    Raises:
        JobNotFoundError: the owner has no such job.
    """
    check_id(job_id)
    query = sa.select(Job.created_at, Job.owner).where(Job.id == job_id)
    row = connection.execute(query).one_or_none()
    if row is None or owner not in (None, row.owner):
        raise JobNotFoundError(job_id)
    return Place(row.created_at, job_id)


def find_beside(connection: sa.Connection, owner: str | None, place: Place) -> list[str | None]:
    """Return the ids of an owner's jobs before and after a place in the order of creation; None for none."""
    older = cursor(place) > KEY, (Job.created_at.desc(), Job.id.desc())
    newer = cursor(place) < KEY, (Job.created_at, Job.id)
    own = is_owned(Job.owner, owner)
    return [
        connection.scalar(sa.select(Job.id).where(condition, own).order_by(*order).limit(1))
        for condition, order in (older, newer)
    ]


def list_page(
    session: Session,
    filters: IndexedFilters,
    statuses: Collection[Status],
    *,
    limit: int,
    after: Place | None,
    newest_first: bool,
    options: Sequence[ORMOption] = (),
) -> tuple[list[Job], bool]:
    """Return a page of jobs by age, and whether more follow.

    Args:
        session: of the unit of work.
        filters: which jobs.
        statuses: of the jobs; none for all.
        limit: the maximum number.
        after: the place before the first one; it need not be there any more. None for the beginning.
        newest_first: the order.
        options: what to load besides.
    """
    conditions = filters.conditions()
    if after is not None:
        conditions.append(cursor(after) > KEY if newest_first else cursor(after) < KEY)
    query = _select_page(conditions, statuses, _by_age(newest_first), limit + 1)
    jobs = session.scalars(query.options(*options)).all()
    return list(jobs[:limit]), len(jobs) > limit


def _by_age(newest_first: bool) -> list[sa.UnaryExpression[Any]]:
    """Return the order of lists."""
    return [c.desc() if newest_first else c.asc() for c in (Job.created_at, Job.id)]


def _select_page(
    conditions: Sequence[sa.ColumnElement[bool]],
    statuses: Collection[Status],
    order: Sequence[sa.SQLColumnExpression[Any]],
    limit: int,
) -> sa.Select[Job]:
    """Select up to ``limit`` jobs that meet conditions, with one of the statuses if there are any, in an order."""
    query = sa.select(Job).order_by(*order).limit(limit)
    if len(statuses) < 2:
        return query.where(*(Job.status == status for status in statuses), *conditions)
    # The index of jobs by status has the jobs of each in order, and not those of several.
    pages = (
        sa.select(Job.id).where(Job.status == s, *conditions).order_by(*order).limit(limit)
        for s in statuses
    )
    ids = sa.union_all(*(sa.select(page.subquery().c.id) for page in pages))
    return query.where(Job.id.in_(ids))


def list_unfinished(
    connection: sa.Connection,
    filters: IndexedFilters,
    statuses: Collection[Status],
    *,
    newest_first: bool,
    limit: int,
) -> list[sa.Row[str, dt.datetime, str | None, str | None, dict[str, str]]]:
    """Return jobs with some statuses, up to ``limit`` in order.

    Returns:
        id, time of creation, API key, batch and metadata (``pairs``) of each.
    """
    columns = (Job.id, Job.created_at, Job.key_id, Job.batch_id, Job.metadata_.label("pairs"))
    # As in `_select_page`.
    pages = (
        sa.select(*columns)
        .where(Job.status == status, *filters.conditions())
        .order_by(*_by_age(newest_first))
        .limit(limit)
        .subquery()
        for status in statuses
    )
    rows = connection.execute(sa.union_all(*(sa.select(page) for page in pages))).all()
    return sorted(rows, key=lambda row: (row.created_at, row.id), reverse=newest_first)[:limit]


def list_from(
    connection: sa.Connection,
    owner: str | None,
    after: Place | None,
    limit: int,
) -> list[sa.Row[str, dt.datetime, dict[str, str]]]:
    """Return id, time and metadata (``pairs``) of an owner's jobs, the oldest first, after a place."""
    columns = (Job.id, Job.created_at, Job.metadata_.label("pairs"))
    query = sa.select(*columns).where(is_owned(Job.owner, owner))
    if after is not None:
        query = query.where(cursor(after) < KEY)
    return list(connection.execute(query.order_by(Job.created_at, Job.id).limit(limit)))


def find_last(connection: sa.Connection, filters: IndexedFilters) -> Place | None:
    """Return the place of the job that was created last."""
    query = filters.select().with_only_columns(Job.created_at, Job.id)
    newest = query.order_by(Job.created_at.desc(), Job.id.desc()).limit(1)
    row = connection.execute(newest).one_or_none()
    return None if row is None else Place(*row)


def list_between(
    connection: sa.Connection,
    filters: IndexedFilters,
    statuses: Collection[Status],
    after: Place | None,
    last: Place,
    limit: int,
) -> list[Place]:
    """Return the places of jobs in the order of creation.

    Args:
        connection: of the unit of work.
        filters: which jobs.
        statuses: of the jobs; none for all.
        after: the place before the first one; it need not be there any more. None for the beginning.
        last: the place of the last one.
        limit: the maximum number.
    """
    conditions = [*filters.conditions(), cursor(last) >= KEY]
    if after is not None:
        conditions.append(cursor(after) < KEY)
    query = _select_page(conditions, statuses, (Job.created_at, Job.id), limit)
    rows = connection.execute(query.with_only_columns(Job.created_at, Job.id))
    return [Place(*row) for row in rows]
