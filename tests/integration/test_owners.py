"""Another owner's job is as good as none: what is asked of it takes the same work, and waits for nobody."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
import sqlalchemy as sa

from jobs.database import Database
from jobs.errors import JobNotFoundError, NotImportedError, NotRetriableError
from jobs.models import Job
from jobs.protocol.history import history
from jobs.use_cases import (
    cancellation,
    deletion,
    erasing,
    exporting,
    proving,
    queries,
    retrying,
    reviewing,
    stages,
    verifying_jobs,
)
from jobs.use_cases.reviewing import NewReview
from tests.executed_statements import executed
from tests.integration.rows import OUTPUT, claim, submit
from tests.integration.sealed import seal
from tests.servers import PATIENCE

OTHER = "other"


def add_review(database: Database, owner: str | None, job_id: str) -> object:
    review = NewReview(critique=1, regeneration=-1)
    return reviewing.add(database, owner, job_id, review, reviewer=OTHER, key_id=None)


def erase(database: Database, owner: str | None, job_id: str) -> object:
    return erasing.erase(database, owner, job_id, history, asked=None, erased_by=OTHER, key_id=None)


#: What can be asked of one job.
CALLS: list[Callable[[Database, str | None, str], object]] = [
    queries.get_job,
    lambda database, owner, job_id: queries.get_job(database, owner, job_id, with_history=True),
    queries.get_version,
    lambda database, owner, job_id: proving.prove(database, owner, job_id, None, 0),
    lambda database, owner, job_id: proving.origin_proof(database, owner, job_id, None, 0),
    lambda database, owner, job_id: verifying_jobs.verify_job(database, owner, job_id, history),
    lambda database, owner, job_id: exporting.selected(database, owner, [job_id]),
    cancellation.cancel,
    retrying.retry,
    add_review,
    erase,
    deletion.delete,
]


@pytest.fixture
def job(database: Database) -> Job:
    """A job with attempts and a review, in the log."""
    job = submit(database)
    for stage_index in range(3):
        assert stages.record(database, claim(database, job, stage_index), OUTPUT)
    add_review(database, None, job.id)
    seal(database)
    return job


@pytest.mark.parametrize("number", range(len(CALLS)))
def test_nothing_takes_more_work_because_another_owner_has_the_job(
    database: Database, job: Job, number: int
) -> None:
    both = []
    for job_id in (job.id, "resp_none"):
        with executed(database.engine) as statements, pytest.raises(JobNotFoundError):
            CALLS[number](database, OTHER, job_id)
        both.append(statements)
    assert both[0] == both[1]
    # The owner's is found, whatever keeps it from being done.
    with suppress(NotRetriableError, NotImportedError):
        CALLS[number](database, job.owner, job.id)


def test_nobody_waits_for_another_owners_job(database: Database, job: Job) -> None:
    """PostgreSQL locks rows. SQLite has one writer at a time, whatever it writes."""
    if database.engine.dialect.name == "sqlite":
        pytest.skip("SQLite has no locks of rows.")

    def ask(call: Callable[..., object]) -> None:
        with pytest.raises(JobNotFoundError):
            call(database, OTHER, job.id)

    with ThreadPoolExecutor(len(CALLS)) as threads, database.engine.connect() as connection:
        connection.execute(sa.select(Job.id).where(Job.id == job.id).with_for_update())
        asked = [threads.submit(ask, call) for call in CALLS]
        try:
            for each in asked:
                each.result(timeout=PATIENCE)
        finally:
            connection.rollback()
