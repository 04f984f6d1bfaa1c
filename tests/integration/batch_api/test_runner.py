"""How batches are worked on: their share of the queue, and processes that are slow, die or fail."""

from __future__ import annotations

import time
from typing import Any

import pytest
import sqlalchemy as sa

from jobs import batch_runner
from jobs.models import ANONYMOUS, Batch, BatchStatus, Job
from jobs.pipeline import DEFAULT_PRIORITY
from jobs.use_cases import batch_answers, batch_validation, batch_work, outbox, submission
from jobs.use_cases.batch_answers import LineResult, Submission
from tests.integration.batch_api.service import BatchService, lines
from tests.integration.rows import QUESTION
from tests.integration.web.client import finish


def test_a_slow_database_lets_a_batch_go_on(
    service: BatchService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if it takes all the time of a call to say which batches there are."""
    batch_id = service.create(lines(1))
    find_work = batch_work.find_work

    def find_slowly(*arguments: Any) -> Any:
        found = find_work(*arguments)
        time.sleep(1.1 * batch_runner.MAX_TIME)  # The fault.
        return found

    monkeypatch.setattr(batch_work, "find_work", find_slowly)
    assert service.runner.run()
    assert service.get(batch_id).status == "in_progress"


def test_lines_do_not_count_against_the_queue(service: BatchService) -> None:
    batch_id = service.create(lines(100))
    service.validate(batch_id)
    service.runner.run()
    assert len(service.queued(batch_id)) == batch_runner.MIN_WINDOW
    submission.submit(service.database, ANONYMOUS, QUESTION, max_queued=1)


def test_a_big_batch_leaves_half_of_the_queue_to_another_owner(service: BatchService) -> None:
    """Whatever each has waiting, their lines are answered in turn."""
    big, small = service.create(lines(200)), service.create(lines(16))
    with service.database.write() as connection:
        connection.execute(sa.update(Batch).where(Batch.id == small).values(owner="other"))
    service.validate(big)
    for _ in range(3):  # it is well under way
        service.runner.run()
        for job_id in service.queued(big):
            finish(service.database, job_id)
    before = service.get(big).request_counts
    service.runner.run()
    while True:
        with service.database.read() as connection:
            row = connection.execute(sa.select(Batch).where(Batch.id == small)).one()
        if row.status is BatchStatus.COMPLETED:
            break
        service.runner.run()
        for job_id in [*service.queued(small), *service.queued(big)]:
            finish(service.database, job_id)
    after = service.get(big).request_counts
    assert before is not None
    assert after is not None
    assert 8 <= after.completed - before.completed <= 32


def test_lines_take_their_turn_among_questions_that_never_end(service: BatchService) -> None:
    batch_id = service.create(lines(20))
    service.validate(batch_id)
    service.runner.run()
    assert batch_answers.raise_waiting_lines(service.database) == 0
    service.shift(Job, "created_at", -batch_answers.PATIENCE - 1)
    assert batch_answers.raise_waiting_lines(service.database) == batch_runner.MIN_WINDOW
    assert batch_answers.raise_waiting_lines(service.database) == 0, "once is enough"
    taken = outbox.take_unpublished(service.database, queue_empty=False, model="")
    assert {(job.job_id, job.priority) for job in taken} == {
        (job_id, DEFAULT_PRIORITY) for job_id in service.queued(batch_id)
    }


def test_a_process_that_was_too_slow_changes_nothing(service: BatchService) -> None:
    """It had a batch, and another process has gone on with it."""
    batch_id = service.create(lines(600))
    slow = batch_work.take_batch(service.database, batch_id, "slow")
    assert slow is not None
    assert not service.runner.run(), "the other one has it"
    service.end_leases()
    service.validate(batch_id)
    piece = batch_validation.Piece(0, 10, 1, [], [], last=True)
    assert batch_validation.record_piece(service.database, batch_id, "slow", piece) is None
    service.runner.run()
    submitted = Submission(after=0, last_line=1, jobs={1: QUESTION})
    for _ in range(2):
        assert batch_answers.record_lines(service.database, batch_id, "slow", [], submitted) is None
        service.end_leases()
    job_id = service.queued(batch_id)[0]
    finish(service.database, job_id)
    result = LineResult(1, b"twice\n", failed=False)
    assert batch_answers.record_lines(service.database, batch_id, "slow", [result]) == []
    assert batch_answers.record_lines(service.database, batch_id, "slow", [result]) == []
    counts = service.get(batch_id).request_counts
    assert counts is not None
    assert counts.completed == 1, "the line was there once"
    assert service.count(Job) == batch_runner.MIN_WINDOW


def test_a_batch_that_was_taken_before_the_clock_was_set_back_goes_on(
    service: BatchService,
) -> None:
    batch_id = service.create(lines(1))
    assert batch_work.take_batch(service.database, batch_id, "lost") is not None
    service.shift(Batch, "leased_until", 7200)
    assert batch_work.take_batch(service.database, batch_id, "next") is not None
    service.end_leases()
    service.complete(batch_id)


def test_one_batch_that_cannot_go_on_stops_no_other(
    service: BatchService, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken, fine = service.create(lines(1)), service.create(lines(1))
    step = service.runner._step

    def fail(work: batch_work.Work, *arguments: Any) -> bool:  # a fake bug
        if work.batch_id == broken:
            raise RuntimeError("a bug")
        return step(work, *arguments)

    monkeypatch.setattr(service.runner, "_step", fail)
    assert service.complete(fine).status == "completed"
    assert f"{broken}: a step failed" in caplog.text
