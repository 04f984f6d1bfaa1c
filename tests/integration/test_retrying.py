"""Retrying failed jobs, on SQLite and on PostgreSQL."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from jobs.database import Database
from jobs.database_clock import utcnow
from jobs.errors import JobNotFoundError, NotRetriableError, TamperedError
from jobs.models import ANONYMOUS, AttemptStatus, Job, Status
from jobs.protocol.history import history
from jobs.statements.leases import MAX_LOST
from jobs.use_cases import (
    cancellation,
    deletion,
    erasing,
    queries,
    retrying,
    reviewing,
    sealing,
    stages,
    sweeping,
)
from jobs.use_cases.log_signing import Signing
from jobs.use_cases.reviewing import NewReview
from jobs.use_cases.verifying import verify
from tests.conftest import WORKER
from tests.integration.rows import OUTPUT, claim, let_leases_run_out, submit
from tests.integration.sealed import seal


def failed(database: Database, stage_index: int = 1) -> Job:
    """Return a job of which a stage failed."""
    job = submit(database)
    for index in range(stage_index):
        assert stages.record(database, claim(database, job, index), OUTPUT)
    assert stages.fail(database, claim(database, job, stage_index), "server_error", "it broke")
    return job


def get(database: Database, job: Job) -> Job:
    return queries.get_job(database, ANONYMOUS, job.id, with_history=True)


def test_a_retried_job_goes_on_from_its_first_unfinished_stage(database: Database) -> None:
    job = failed(database)
    before = get(database, job)
    retried, is_new = retrying.retry(database, ANONYMOUS, job.id)
    assert is_new
    assert (retried.status, retried.stage_index) == (Status.IN_PROGRESS, 1)
    assert (retried.finished_at, retried.error_code, retried.error_message) == (None, None, None)
    assert retried.model == before.model
    for index in (1, 2):
        assert stages.record(database, claim(database, job, index), OUTPUT)
    told = history(get(database, job))
    assert told["status"] == "completed"
    assert told["error"] is None
    assert [(a["position"], a["number"], a["status"]) for a in told["attempts"]] == [
        (0, 1, "finished"),
        (1, 1, "failed"),
        (1, 2, "finished"),
        (2, 1, "finished"),
    ]
    [retry] = told["retries"]
    assert (retry["code"], retry["entry"]) == ("server_error", None)
    assert retry["finished_at"] == history(before)["finished_at"]
    assert told["attempts"][1]["error"] == "it broke", "what failed stays in the history"


def test_only_a_failed_job_of_the_owner_is_retried(database: Database) -> None:
    job = submit(database)
    with pytest.raises(NotRetriableError, match="it is queued"):
        retrying.retry(database, ANONYMOUS, job.id)
    cancellation.cancel(database, ANONYMOUS, job.id)
    with pytest.raises(NotRetriableError, match="it is cancelled"):
        retrying.retry(database, ANONYMOUS, job.id)
    for owner, job_id in (("other", failed(database).id), (None, "resp_1"), (None, "x")):
        with pytest.raises(JobNotFoundError):
            retrying.retry(database, owner, job_id)


def test_one_of_several_retries_at_once_succeeds(database: Database) -> None:
    job = failed(database)

    def retry(_: int) -> bool:
        try:
            retrying.retry(database, None, job.id)
        except NotRetriableError:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(retry, range(4))) == [False, False, False, True]
    assert len(get(database, job).retries) == 1


def test_workers_that_were_lost_before_a_retry_do_not_count(database: Database) -> None:
    job = submit(database)
    for end in range(2):
        for _ in range(MAX_LOST):
            assert get(database, job).status is not Status.FAILED
            claim(database, job, exclusive=True)
            let_leases_run_out(database)
            sweeping.sweep(database)
        stored = get(database, job)
        assert (stored.status, stored.error_code) == (Status.FAILED, "worker_lost")
        if not end:
            retrying.retry(database, ANONYMOUS, job.id)
            assert (
                stages.why_refused(database, job.id, 0, WORKER)
                is not stages.Refusal.NEEDS_EXCLUSIVE_WORKER
            )
    lost = [a.status for a in get(database, job).attempts]
    assert lost == [AttemptStatus.LOST] * 2 * MAX_LOST


def test_the_time_limit_begins_again(database: Database) -> None:
    job = submit(database)
    held = claim(database, job)
    with database.engine.begin() as connection:
        connection.execute(sa.update(Job).values(deadline_at=utcnow(-60)))
    sweeping.sweep(database)
    assert get(database, job).error_code == "deadline_exceeded"
    with pytest.raises(NotRetriableError, match="has not given it back"):
        retrying.retry(database, ANONYMOUS, job.id)
    stages.keep_partial(database, held, OUTPUT)
    retrying.retry(database, ANONYMOUS, job.id)
    again = claim(database, job)
    assert again.seconds_left > 0
    assert sweeping.sweep(database).failed == []


def test_each_end_has_an_entry_in_the_log(database: Database) -> None:
    job = failed(database)
    other = failed(database)
    assert seal(database) == 2
    first = get(database, job).log_index
    reviewing.add(database, None, job.id, NewReview(note="Why?"), reviewer="ann")
    assert seal(database) == 1
    retrying.retry(database, ANONYMOUS, job.id)
    assert verify(database, history).retried == 1, "also while it goes on"
    for index in (1, 2):
        assert stages.record(database, claim(database, job, index), OUTPUT)
    assert seal(database) == 1
    told = history(get(database, job))
    assert told["retries"][0]["entry"] == first
    assert told["log"]["index"] > first
    report = verify(database, history)
    assert (report.jobs, report.retried, report.reviews) == (2, 1, 1)
    deletion.delete(database, ANONYMOUS, job.id)
    retrying.retry(database, ANONYMOUS, other.id)
    deletion.delete(database, ANONYMOUS, other.id)
    assert seal(database) == 3, "one deletion for each entry of an end"
    assert verify(database, history).jobs == 0


def test_a_change_of_what_a_retry_says_is_found(database: Database) -> None:
    job = failed(database)
    seal(database)
    retrying.retry(database, ANONYMOUS, job.id)
    for index in (1, 2):
        assert stages.record(database, claim(database, job, index), OUTPUT)
    seal(database)
    with database.engine.begin() as connection:
        connection.execute(sa.update(Job).values(retries=[]))
    with pytest.raises(TamperedError, match=f"job {job.id}"):
        verify(database, history)


def test_an_end_that_was_prepared_before_a_retry_gets_no_entry(database: Database) -> None:
    job = failed(database)
    prepared = sealing.prepare(database, history)
    retrying.retry(database, ANONYMOUS, job.id)
    assert stages.fail(database, claim(database, job, 1), "server_error", "it broke")
    assert sealing.append(database, prepared, Signing()) == 0
    assert seal(database) == 1
    assert verify(database, history).jobs == 1


def test_a_job_whose_texts_were_erased_is_not_retried(database: Database) -> None:
    job = failed(database)
    seal(database)
    erasing.erase(database, None, job.id, history, ["/question"], erased_by="ann")
    with pytest.raises(NotRetriableError, match="erased"):
        retrying.retry(database, ANONYMOUS, job.id)
