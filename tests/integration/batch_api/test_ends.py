"""How batches end: cancelled, late, with lines that fail; and what becomes of their files."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from openai import NotFoundError

from jobs.models import ANONYMOUS, Batch, BatchLine, File, FileChunk, Job, Status
from jobs.use_cases import batches, cancellation, deletion, files, queries, stages
from tests.conftest import WORKER
from tests.integration.batch_api.service import BatchService, line, lines
from tests.integration.web.client import OUTPUT, finish


def test_a_cancelled_batch_has_the_answers_so_far(service: BatchService) -> None:
    batch_id = service.create(lines(300))
    service.validate(batch_id)
    service.runner.run()
    first, second, *_ = service.queued(batch_id)
    finish(service.database, first)
    claim = stages.claim(service.database, second, 0, WORKER, job_timeout=60)
    cancelling = service.client.batches.cancel(batch_id)
    assert cancelling.status == "cancelling"
    assert queries.get_job(service.database, ANONYMOUS, second).status is Status.CANCELLED
    assert claim is not None
    assert not stages.record(service.database, claim, OUTPUT)
    batch = service.complete(batch_id)
    assert batch.status == "cancelled"
    assert batch.cancelling_at is not None
    assert batch.cancelled_at is not None
    assert batch.request_counts is not None
    assert (batch.request_counts.completed, batch.request_counts.failed) == (1, 299)
    assert set(service.lines(batch.output_file_id)) == {"line-1"}
    errors = service.lines(batch.error_file_id)
    assert len(errors) == 299
    assert {error["error"]["code"] for error in errors.values()} == {"batch_cancelled"}
    assert service.client.batches.cancel(batch_id).status == "cancelled", "it does not change"


def test_a_batch_can_be_cancelled_while_it_is_validated(service: BatchService) -> None:
    batch_id = service.create(lines(3))
    assert service.client.batches.cancel(batch_id).status == "cancelling"
    batch = service.complete(batch_id)
    assert (batch.status, batch.output_file_id, batch.error_file_id) == ("cancelled", None, None)
    assert service.count(BatchLine) == service.count(Job) == 0


def test_lines_that_are_late_expire(service: BatchService) -> None:
    batch_id = service.create(lines(30))
    service.validate(batch_id)
    service.runner.run()
    finish(service.database, service.queued(batch_id)[0])
    service.shift(Batch, "expires_at", -1)
    batch = service.complete(batch_id)
    assert batch.status == "expired"
    assert batch.expired_at is not None
    assert set(service.lines(batch.output_file_id)) == {"line-1"}
    errors = service.lines(batch.error_file_id)
    assert {error["error"]["code"] for error in errors.values()} == {"batch_expired"}
    assert len(errors) == 29


def test_a_batch_may_expire_before_it_is_validated(service: BatchService) -> None:
    batch_id = service.create(lines(3))
    service.shift(Batch, "expires_at", -1)
    assert service.complete(batch_id).status == "expired"


def test_jobs_that_fail_are_cancelled_or_deleted_are_errors(service: BatchService) -> None:
    batch_id = service.create(lines(5))
    service.validate(batch_id)
    service.runner.run()
    failed, refused, cancelled, deleted, _ = service.queued(batch_id)
    for job_id, code in ((failed, "engine_error"), (refused, "context_length_exceeded")):
        claim = stages.claim(service.database, job_id, 0, WORKER, job_timeout=60)
        assert claim is not None
        stages.fail(service.database, claim, code, "it broke")
    cancellation.cancel(service.database, ANONYMOUS, cancelled)
    deletion.delete(service.database, ANONYMOUS, deleted)
    batch = service.complete(batch_id)
    assert batch.status == "completed"
    errors = service.lines(batch.error_file_id)
    assert set(service.lines(batch.output_file_id)) == {"line-5"}
    assert errors["line-1"]["response"]["status_code"] == 500
    assert errors["line-1"]["response"]["request_id"] == failed
    assert errors["line-1"]["response"]["body"]["error"]["code"] == "engine_error"
    assert errors["line-2"]["response"]["status_code"] == 400
    assert errors["line-3"]["error"]["code"] == "cancelled"
    assert errors["line-4"]["error"]["code"] == "deleted"
    assert deleted in errors["line-4"]["error"]["message"]


def test_a_line_that_has_become_wrong_is_an_error(service: BatchService) -> None:
    earlier = service.client.responses.create(input="Why?", background=True)
    finish(service.database, earlier.id)
    batch_id = service.create(
        line("a", previous_response_id=earlier.id, context="turns") + line("b")
    )
    assert service.validate(batch_id).status == "in_progress"
    service.client.responses.delete(earlier.id)
    batch = service.complete(batch_id)
    error = service.lines(batch.error_file_id)["a"]["response"]
    assert error["status_code"] == 400
    assert error["body"]["error"]["code"] == "previous_response_not_found"
    assert set(service.lines(batch.output_file_id)) == {"b"}


def test_a_deleted_input_is_read_until_the_batch_has_ended(service: BatchService) -> None:
    input_id = service.upload(lines(20))
    batch_id = service.create_from(input_id)
    service.client.files.delete(input_id)
    with pytest.raises(NotFoundError):
        service.client.files.retrieve(input_id)
    assert not files.sweep_files(service.database), "it is needed"
    ended = service.complete(batch_id)
    assert len(service.lines(ended.output_file_id)) == 20
    while files.sweep_files(service.database):
        pass
    with service.database.read() as connection:
        assert set(connection.scalars(sa.select(File.id))) == {ended.output_file_id}


def test_output_files_expire(service: BatchService) -> None:
    batch_id = service.create(
        lines(1), output_expires_after={"anchor": "created_at", "seconds": 3600}
    )
    output = service.client.files.retrieve(service.complete(batch_id).output_file_id or "")
    assert output.expires_at == output.created_at + 3600


def test_old_batches_and_their_files_are_deleted(service: BatchService) -> None:
    service.complete(service.create(lines(3)))
    open_batch = service.create(lines(3))
    days = 86_400

    def set_age(seconds: float) -> None:
        for table, column in ((Batch, "ended_at"), (File, "created_at")):
            service.shift(table, column, -seconds)
        with service.database.write() as connection:
            still_open = sa.update(Batch).where(Batch.id == open_batch)
            connection.execute(still_open.values(ended_at=None))

    set_age(2 * days - 60)
    assert batches.delete_batches(service.database, 2) == 0
    while files.sweep_files(service.database, 2):
        pass
    assert service.count(File) == 3, "two inputs and an output"
    set_age(2 * days + 60)
    assert batches.delete_batches(service.database, 2) == 1
    while files.sweep_files(service.database, 2):
        pass
    assert [batch.id for batch in service.client.batches.list()] == [open_batch]
    assert service.count(File) == service.count(FileChunk) == 1, "the open batch's input"
    assert len(service.lines(service.complete(open_batch).output_file_id)) == 3
