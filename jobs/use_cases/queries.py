"""Reading an owner's jobs. The jobs of other owners are not found; the owner None stands for all owners."""

from __future__ import annotations

import datetime as dt

from jobs.database import Database
from jobs.errors import JobNotFoundError
from jobs.models import Job, Status
from jobs.page_request import PageRequest
from jobs.statements import job_lists, jobs
from jobs.statements.jobs import FoundVersion, JobVersion

__all__ = [
    "JobVersion",
    "find_beside",
    "find_original",
    "find_version",
    "get_job",
    "get_version",
    "list_jobs",
    "list_replays",
]

#: Replays of a job that its history names: their texts are read, to compare them.
MAX_REPLAYS = 10


def get_job(
    database: Database, owner: str | None, job_id: str, *, with_history: bool = False
) -> Job:
    """Return a job with all its attempts and the workers that ran them.

    Args:
        database: of the job.
        owner: of the job; None for any.
        job_id: of the job.
        with_history: whether to load its input items, reviews and erasures too.

    Raises:
        JobNotFoundError: the owner has no such job.
    """
    with database.read_session() as session:
        return jobs.get(session, owner, job_id, with_history=with_history)


def get_version(database: Database, owner: str | None, job_id: str) -> JobVersion:
    """Return a job's version: as long as it is the same, so are the job's stages and status.

    Raises:
        JobNotFoundError: the owner has no such job.
    """
    return find_version(database, owner, job_id).version


def find_version(database: Database, owner: str | None, job_id: str) -> FoundVersion:
    """Return the same as `get_version`, with the database's time.

    Raises:
        JobNotFoundError: the owner has no such job.
    """
    jobs.check_id(job_id)
    found = database.look_up(jobs.versions, job_id)
    if found is None or owner not in (None, found.owner):
        raise JobNotFoundError(job_id)
    return found


def find_beside(database: Database, owner: str | None, job: Job) -> tuple[str | None, str | None]:
    """Return the ids of the owner's jobs before and after a job in the order of creation; None for none."""
    place = job_lists.Place(job.created_at, job.id)
    with database.read() as connection:
        older, newer = job_lists.find_beside(connection, owner, place)
    return older, newer


def find_original(database: Database, owner: str | None, replay: Job) -> Job | None:
    """Return the job that another one replays; None if that replays none, or the owner has no such job any more."""
    if replay.replay_of is None:
        return None
    try:
        return get_job(database, owner, replay.replay_of)
    except JobNotFoundError:
        return None


def list_replays(database: Database, owner: str | None, job_id: str) -> list[Job]:
    """Return the newest replays of a job, up to `MAX_REPLAYS`, with their attempts.

    Args:
        database: of the jobs.
        owner: of the replays; None for any.
        job_id: of the job that they replay.
    """
    with database.read_session() as session:
        return jobs.list_replays(session, owner, job_id, MAX_REPLAYS)


def list_jobs(
    database: Database,
    owner: str | None,
    page: PageRequest,
    *,
    status: Status | None = None,
    since: dt.datetime | None = None,
    until: dt.datetime | None = None,
    with_attempts: bool = False,
) -> tuple[list[Job], bool]:
    """Return a page of jobs by age, and whether more follow.

    Args:
        database: of the jobs.
        owner: of the jobs; None for all.
        page: which page.
        status: of the jobs; None for all.
        since, until: the jobs were created from ``since`` on, and before ``until``.
        with_attempts: whether to load the attempts, without their prompts.

    Raises:
        CursorError: the owner has no job with the id ``page.after``.
    """
    with database.read_session() as session, page.check_after(JobNotFoundError):
        place = None
        if page.after is not None:
            place = job_lists.place_of(session.connection(), owner, page.after)
        return job_lists.list_page(
            session,
            jobs.IndexedFilters(owner, since, until),
            () if status is None else (status,),
            limit=page.limit,
            after=place,
            newest_first=page.newest_first,
            options=jobs.ATTEMPTS if with_attempts else (),
        )
