"""Statements on jobs: as their owners see them, and the conditions that others share.

The owner None stands for all owners.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple, Self

import sqlalchemy as sa
from sqlalchemy.orm import Session, defer, selectinload, undefer
from sqlalchemy.orm.attributes import set_committed_value
from sqlalchemy.orm.interfaces import ORMOption

from jobs.database_clock import utcnow
from jobs.enums import ANY, RATED
from jobs.errors import JobNotFoundError
from jobs.ids import is_id
from jobs.models import OPEN, Attempt, Job, Status
from jobs.search.filters import Filters
from jobs.statements import endings, requests
from jobs.statements.owners import is_owned
from jobs.statements.requests import Keyed

# The conditions of the partial indexes, in their words: SQLite uses a partial index only for those, and
# does not know the value of a parameter when it plans.
IS_QUEUED = Job.status == sa.literal_column("'queued'")
IS_IN_PROGRESS = Job.status == sa.literal_column("'in_progress'")
IS_OPEN = Job.status.in_([sa.literal_column("'queued'"), sa.literal_column("'in_progress'")])
IS_LEASED = Job.worker_id.is_not(None)

#: The same as `IS_OPEN`, for statements that are built once: SQLAlchemy expands an ``IN`` at each execution.
IS_OPEN_EXPANDED = sa.or_(*(Job.status == status for status in OPEN))


class JobVersion(NamedTuple):
    """Columns of which at least one changes with every change of a job's stages, status or texts."""

    status: Status
    run: int
    stage_index: int
    lease_token: int
    erased_at: dt.datetime | None


class FoundVersion(NamedTuple):
    """The version of a job, and whose it is."""

    owner: str
    version: JobVersion
    #: The database's time at which it was the job's version.
    at: dt.datetime


@dataclass(frozen=True)
class IndexedFilters:
    """The filters that the table of jobs has indexes for, beside that of the status. None means that all jobs meet it."""

    owner: str | None
    #: Created from ``since`` on, and before ``until``.
    since: dt.datetime | None
    until: dt.datetime | None
    #: The last rating of the regeneration; None for jobs without one, `ANY` for all.
    rating: int | None = ANY

    @classmethod
    def of(cls, filters: Filters, owner: str | None) -> Self:
        """Return those of a list's filters, with an owner; None for all."""
        # That there is any rating is a query of the search index.
        rating = ANY if filters.rating == RATED else filters.rating
        return cls(owner, filters.since, filters.until, rating)

    def conditions(self) -> list[sa.ColumnElement[bool]]:
        """Return what a job must meet."""
        conditions = [is_owned(Job.owner, self.owner)]
        if self.since is not None:
            conditions.append(Job.created_at >= self.since)
        if self.until is not None:
            conditions.append(Job.created_at < self.until)
        if self.rating is None:
            conditions.append(Job.rating.is_(None))
        elif self.rating != ANY:
            conditions.append(Job.rating == self.rating)
        return conditions

    def select(self) -> sa.Select[Job]:
        """Select the jobs."""
        return sa.select(Job).where(*self.conditions())


#: The columns of a job by attribute. Those with a default get it when the row is added.
_COLUMNS = {attribute.key: attribute.columns[0] for attribute in Job.__mapper__.column_attrs}
_DEFAULTED = {key: column for key, column in _COLUMNS.items() if column.default is not None}
_INSERT = sa.insert(Job.__table__).returning(Job.id, *_DEFAULTED.values())  # type: ignore[arg-type]  # a table


def add_all(connection: sa.Connection, jobs: Sequence[Job]) -> None:
    """Add jobs that no session knows, and set their columns that have a default.

    The mapper would do the same in four times the time. Several take one statement.

    Args:
        connection: in a transaction that writes.
        jobs: at least one; all have values for the same columns.
    """
    rows = connection.execute(
        _INSERT,
        [
            {
                column.key: job.__dict__[key]
                for key, column in _COLUMNS.items()
                if key in job.__dict__
            }
            for job in jobs
        ],
    )
    by_id = {job_id: values for job_id, *values in rows}
    for job in jobs:
        for key, value in zip(_DEFAULTED, by_id[job.id], strict=True):
            set_committed_value(job, key, value)


def check_id(job_id: str) -> None:
    """Check that a text can be a job's id.

    Raises:
        JobNotFoundError: it cannot.
    """
    if not is_id(job_id, "resp_"):
        raise JobNotFoundError(job_id)


def get(session: Session, owner: str | None, job_id: str, *, with_history: bool = False) -> Job:
    """Return an owner's job, with its attempts and the workers that ran them.

    Args:
        session: of the unit of work.
        owner: of the job; None for any.
        job_id: of the job.
        with_history: whether to load its input items, reviews and erasures too.

    Raises:
        JobNotFoundError: the owner has no such job.
    """
    check_id(job_id)
    options: list[ORMOption] = [selectinload(Job.attempts).selectinload(Attempt.worker)]
    if with_history:
        options += [
            undefer(Job.input_items),
            selectinload(Job.reviews),
            selectinload(Job.erasures),
        ]
    # Nothing of another owner's job is read, so that nothing takes longer because there is one.
    query = sa.select(Job).where(Job.id == job_id, is_owned(Job.owner, owner)).options(*options)
    job = session.scalar(query)
    if job is None:
        raise JobNotFoundError(job_id)
    return job


_LOCKED = (Job.id, Job.owner, Job.status, Job.log_index, Job.batch_id)


def lock(
    connection: sa.Connection, owner: str | None, job_id: str, *, for_update: bool = True
) -> sa.Row[*tuple[Any, ...]]:
    """Lock an owner's job until the transaction ends; return id, owner, status, log index and batch.

    Args:
        connection: of the transaction.
        owner: of the job; None for any.
        job_id: of the job.
        for_update: False to look at it without a lock.

    Raises:
        JobNotFoundError: the owner has no such job.
    """
    check_id(job_id)
    query = sa.select(*_LOCKED).where(Job.id == job_id, is_owned(Job.owner, owner))
    row = connection.execute(query.with_for_update() if for_update else query).one_or_none()
    if row is None:
        raise JobNotFoundError(job_id)
    return row


def versions(connection: sa.Connection, job_ids: list[str]) -> dict[str, FoundVersion]:
    """Return the version of each job that there is."""
    # A few statements for all numbers of jobs: to make one costs more than to run it.
    size = 1 << (len(job_ids) - 1).bit_length()
    ids = job_ids + job_ids[-1:] * (size - len(job_ids))
    rows = connection.execute(
        _versions_of(size), {f"id_{number}": job_id for number, job_id in enumerate(ids)}
    )
    return {
        job_id: FoundVersion(owner, JobVersion(*version), at)
        for job_id, owner, at, *version in rows
    }


@cache
def _versions_of(size: int) -> sa.Select[*tuple[Any, ...]]:
    """Return the query for a number of jobs, with the parameters ``id_0``, ``id_1`` and so on."""
    ids = [sa.bindparam(f"id_{number}", type_=Job.id.type) for number in range(size)]
    version = (getattr(Job, field) for field in JobVersion._fields)
    return sa.select(Job.id, Job.owner, utcnow(), *version).where(Job.id.in_(ids))


def find_made(session: Session, request: Keyed | None) -> Job | None:
    """Return the job that the same request made, with its attempts; see `requests.find_made`."""
    return requests.find_made(session, request, sa.select(Job).options(selectinload(Job.attempts)))


def list_replays(session: Session, owner: str | None, job_id: str, limit: int) -> list[Job]:
    """Return the newest replays of a job, with their attempts and the workers that ran them."""
    return list(
        session.scalars(
            sa.select(Job)
            .where(Job.replay_of == job_id, is_owned(Job.owner, owner))
            .order_by(Job.created_at.desc(), Job.id.desc())
            .limit(limit)
            .options(selectinload(Job.attempts).selectinload(Attempt.worker))
        )
    )


#: Loads the attempts of jobs without their prompts, which responses do not show: those of long conversations are long.
ATTEMPTS: tuple[ORMOption, ...] = (
    selectinload(Job.attempts).options(defer(Attempt.prompt), defer(Attempt.delta_lengths)),
)


def load(session: Session, job_ids: Collection[str]) -> dict[str, Job]:
    """Return jobs by their ids, in the order of these. Those that are gone are left out."""
    if not job_ids:
        return {}
    found = {job.id: job for job in session.scalars(sa.select(Job).where(Job.id.in_(job_ids)))}
    return {job_id: found[job_id] for job_id in job_ids if job_id in found}


def cancel(connection: sa.Connection, owner: str | None, job_id: str) -> None:
    """End an owner's job as cancelled, unless it has ended."""
    ended = connection.execute(
        sa.update(Job)
        .where(Job.id == job_id, is_owned(Job.owner, owner), Job.status.in_(OPEN))
        .values(status=Status.CANCELLED, finished_at=utcnow())
        .returning(*endings.COLUMNS)
    ).all()
    endings.follow_up(connection, ended)


def any_match(*conditions: sa.ColumnElement[bool]) -> sa.Select[bool]:
    """Select whether any job meets any of some conditions: one look at an index each."""
    return sa.select(sa.or_(*(sa.exists().where(condition) for condition in conditions)))


_ANY_UNFINISHED = any_match(IS_QUEUED, IS_IN_PROGRESS, IS_LEASED)


def any_unfinished(connection: sa.Connection) -> bool:
    """Return whether any job has not ended, or any attempt."""
    return bool(connection.scalar(_ANY_UNFINISHED))


def select_unlocked(condition: sa.ColumnElement[bool]) -> sa.Select[str]:
    """Select the ids of jobs; in PostgreSQL lock them, and skip those that another sweep has locked."""
    return sa.select(Job.id).where(condition).with_for_update(skip_locked=True)


def fail(
    connection: sa.Connection, condition: sa.ColumnElement[bool], code: str, message: str
) -> list[str]:
    """End jobs as failed, whoever holds their leases; return their ids."""
    failed = connection.execute(
        sa.update(Job)
        .where(Job.id.in_(select_unlocked(condition)))
        .values(
            status=Status.FAILED,
            finished_at=utcnow(),
            error_code=code,
            error_message=message,
        )
        .returning(*endings.COLUMNS)
    ).all()
    endings.follow_up(connection, failed)
    return [job.id for job in failed]
