"""Batches with OpenAI's client, a real server and both databases; the tests answer the jobs."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from openai import BadRequestError, NotFoundError, RateLimitError

from jobs import batch_input, batch_runner
from jobs.column_types import utcnow
from jobs.errors import LineNotWrittenError
from jobs.models import ANONYMOUS, Batch, BatchLine, BatchStatus, File, FileChunk, Job, Status
from jobs.page_request import PageRequest
from jobs.pipeline import DEFAULT_PRIORITY
from jobs.protocol.history import history
from jobs.use_cases import (
    batch_answers,
    batch_validation,
    batch_work,
    batches,
    cancellation,
    deletion,
    deliveries,
    erasing,
    files,
    outbox,
    queries,
    stages,
    submission,
    webhooks,
)
from jobs.use_cases.batch_answers import LineResult, Submission
from jobs.webhooks.events import EVENT_TYPES
from tests.conftest import WORKER
from tests.integration.batch_service import (
    CHAT,
    RESPONSES,
    BatchService,
    batch_service,
    line,
    lines,
)
from tests.integration.rows import QUESTION
from tests.integration.sealed import seal
from tests.integration.web.client import OUTPUT, finish
from tests.servers import RedisServer


@pytest.fixture(scope="session")
def tokenizer_json(checkpoint: Path) -> str:
    return (checkpoint / "base" / "tokenizer.json").read_text()


@pytest.fixture
def service(
    database_url: str, redis_server: RedisServer, tokenizer_json: str
) -> Iterator[BatchService]:
    with batch_service(database_url, redis_server.url, tokenizer_json) as running:
        yield running


def count(service: BatchService, *columns: Any) -> int:
    with service.database.read() as connection:
        return connection.scalar(sa.select(sa.func.count()).select_from(*columns)) or 0


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


@pytest.mark.parametrize("endpoint", [RESPONSES, CHAT])
def test_a_batch_is_answered_line_by_line(service: BatchService, endpoint: str) -> None:
    content = "".join(line(f"q-{n}", endpoint, metadata={"n": str(n)}) for n in range(20))
    batch_id = service.create(content, endpoint, metadata={"team": "blue"})
    assert service.validate(batch_id).status == "in_progress"
    batch = service.complete(batch_id)
    assert (batch.status, batch.metadata, batch.error_file_id) == (
        "completed",
        {"team": "blue"},
        None,
    )
    assert batch.request_counts is not None
    assert batch.usage is not None
    assert (batch.request_counts.total, batch.request_counts.completed) == (20, 20)
    assert batch.usage.input_tokens == 20 * 3 * (OUTPUT.prompt_tokens or 0)
    assert batch.created_at <= batch.in_progress_at <= batch.finalizing_at <= batch.completed_at  # type: ignore[operator]  # all are set
    answers = service.lines(batch.output_file_id)
    assert set(answers) == {f"q-{n}" for n in range(20)}
    for number in range(20):
        answer = answers[f"q-{number}"]
        assert (answer["error"], answer["response"]["status_code"]) == (None, 200)
        body, job_id = answer["response"]["body"], answer["response"]["request_id"]
        single = service.client.get(f"/responses/{job_id}", cast_to=object)
        if endpoint == RESPONSES:
            assert body == single
        else:
            assert body["choices"][0]["message"]["content"] == OUTPUT.text
        assert body["metadata"] == {"n": str(number)}, "the user's"
    job = queries.get_job(service.database, ANONYMOUS, job_id)
    assert (job.batch_id, job.custom_id, job.priority) == (batch_id, "q-19", 0)
    output = service.client.files.retrieve(batch.output_file_id or "")
    assert (output.purpose, output.expires_at) == ("batch_output", None)
    assert count(service, BatchLine) == 0


def test_every_wrong_line_is_named_and_nothing_is_submitted(service: BatchService) -> None:
    content = "".join(
        [
            line("good"),
            "{nonsense\n",
            "\n",
            '["a list"]\n',
            line("good"),
            line("other", model="gpt-4o"),
            line("chat", CHAT),
            line("warm", temperature=9),
            line("last").rstrip("\n"),
        ]
    )
    batch = service.validate(service.create(content))
    assert batch.status == "failed"
    assert batch.errors is not None
    found = {e.line: (e.code, e.param) for e in batch.errors.data or []}
    assert found == {
        2: ("invalid_json_line", None),
        4: ("invalid_json_line", None),
        5: ("duplicate_custom_id", "custom_id"),
        6: ("model_not_found", "body.model"),
        7: ("invalid_url", "url"),
    }
    assert list(found) == [2, 4, 5, 6, 7], "in the order of the lines"
    assert batch.failed_at is not None
    assert batch.request_counts is not None
    assert batch.request_counts.total == 0
    assert (batch.output_file_id, batch.error_file_id) == (None, None)
    assert count(service, Job) == count(service, BatchLine) == 0


def test_a_wrong_body_is_the_error_of_its_line_alone(service: BatchService) -> None:
    wrong: dict[str, tuple[dict[str, Any], str, str]] = {
        "warm": ({"temperature": 9}, "invalid_value", "temperature"),
        "odd": ({"temprature": 1}, "unknown_parameter", "temprature"),
        "model": ({"model": 5}, "invalid_type", "model"),
        "stream": ({"stream": True}, "unsupported_parameter", "stream"),
        "unknown": (
            {"previous_response_id": "resp_0", "context": "turns"},
            "previous_response_not_found",
            "previous_response_id",
        ),
        "long": ({"max_output_tokens": 4000}, "context_length_exceeded", "max_output_tokens"),
    }
    content = line("first") + "".join(line(name, **body) for name, (body, *_) in wrong.items())
    batch = service.complete(service.create(content + line("last")))
    assert (batch.status, batch.errors) == ("completed", None)
    assert batch.request_counts is not None
    assert batch.request_counts.to_dict() == {"total": 8, "completed": 2, "failed": 6}
    assert set(service.lines(batch.output_file_id)) == {"first", "last"}
    refused = service.lines(batch.error_file_id)
    assert {
        name: each["response"]["status_code"] for name, each in refused.items()
    } == dict.fromkeys(wrong, 400)
    for name, (_, code, param) in wrong.items():
        error = refused[name]["response"]["body"]["error"]
        assert (error["code"], error["param"]) == (code, param)
        assert refused[name]["error"] is None
    assert count(service, Job) == 2


def test_files_are_read_as_editors_write_them(service: BatchService) -> None:
    content = "\ufeff" + line("a").replace("\n", "\r\n") + "\r\n \r\n" + line("é ␛ \0 \u2028")
    batch = service.complete(service.create(content))
    assert set(service.lines(batch.output_file_id)) == {"a", "é ␛ \0 \u2028"}


def test_files_without_valid_requests_fail(service: BatchService) -> None:
    for content, code, number in (
        (b"", "empty_file", None),
        (b"\n \n", "empty_file", None),
        (b'{"custom_id": "' + b"x" * (1 << 20) + b'"}\n', "line_too_large", 1),
        (b"\xff\xfe\n", "invalid_json_line", 1),
    ):
        batch = service.validate(service.create(content))
        assert batch.errors is not None
        [error] = batch.errors.data or []
        assert (batch.status, error.code, error.line) == ("failed", code, number)


def test_a_batch_has_a_maximum_of_lines(
    service: BatchService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_input, "MAX_LINES", 3)
    assert service.validate(service.create(lines(3))).status == "in_progress"
    batch = service.validate(service.create(lines(4)))
    assert batch.errors is not None
    [error] = batch.errors.data or []
    assert (error.code, error.line) == ("request_limit_exceeded", 4)
    assert "at most 3 requests" in (error.message or "")


def test_a_validation_ends_at_the_hundredth_error(service: BatchService) -> None:
    batch = service.validate(service.create(lines(300, model="gpt-4o")))
    assert batch.errors is not None
    assert [error.line for error in batch.errors.data or []] == list(range(1, 101))


def test_wrong_parameters_are_refused_by_name(service: BatchService) -> None:
    parameters: dict[str, Any] = {
        "input_file_id": service.upload(lines(1)),
        "endpoint": RESPONSES,
        "completion_window": "24h",
    }
    expiry = {"output_expires_after": {"anchor": "created_at", "seconds": 1}}
    refused: list[tuple[dict[str, Any], str, str]] = [
        ({"endpoint": "/v1/embeddings"}, "unsupported_parameter", "endpoint"),
        ({"completion_window": "1h"}, "unsupported_parameter", "completion_window"),
        ({"input_file_id": "file-0"}, "file_not_found", "input_file_id"),
        ({"input_file_id": "../\0"}, "file_not_found", "input_file_id"),
        (expiry, "invalid_value", "output_expires_after"),
        ({"extra_body": {"surprise": 1}}, "unknown_parameter", "surprise"),
    ]
    for changes, code, param in refused:
        with pytest.raises(BadRequestError) as caught:
            service.client.batches.create(**{**parameters, **changes})
        assert (caught.value.code, caught.value.param) == (code, param)
    assert count(service, Batch) == 0


def test_an_output_is_no_input(service: BatchService) -> None:
    output = service.complete(service.create(lines(1))).output_file_id
    with pytest.raises(BadRequestError, match="purpose `batch`"):
        service.create_from(output or "")


def test_a_repeated_request_makes_no_second_batch(service: BatchService) -> None:
    parameters: dict[str, Any] = {
        "input_file_id": service.upload(lines(1)),
        "endpoint": RESPONSES,
        "completion_window": "24h",
        "extra_headers": {"Idempotency-Key": "k"},
    }
    first, second = (service.client.batches.create(**parameters) for _ in range(2))
    assert first == second
    with pytest.raises(Exception, match="different request"):
        service.client.batches.create(**{**parameters, "metadata": {"a": "b"}})


def test_an_owner_has_a_maximum_of_open_batches(
    service: BatchService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "MAX_OPEN_OF_OWNER", 2)
    ids = [service.create(lines(1)) for _ in range(2)]
    with pytest.raises(RateLimitError) as caught:
        service.create(lines(1))
    assert caught.value.code == "too_many_batches"
    service.client.batches.cancel(ids[0])
    service.complete(ids[0])
    service.create(lines(1))


def test_batches_are_listed_in_pages_by_age(service: BatchService) -> None:
    ids = [service.create(lines(1)) for _ in range(5)]
    page = service.client.batches.list(limit=2)
    assert [batch.id for batch in page.data] == [ids[4], ids[3]]
    assert page.has_more
    assert [batch.id for batch in service.client.batches.list(limit=2)] == ids[::-1]
    oldest = service.client.batches.list(limit=2, extra_query={"order": "asc"})
    assert [batch.id for batch in oldest.data] == ids[:2]
    rest = service.client.batches.list(limit=9, after=ids[1], extra_query={"order": "asc"})
    assert [batch.id for batch in rest.data] == ids[2:]
    with pytest.raises(BadRequestError, match="no page after 'batch_0'"):
        service.client.batches.list(after="batch_0")
    with pytest.raises(NotFoundError):
        service.client.batches.cancel("batch_0")


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


def test_webhooks_tell_how_batches_and_their_jobs_ended(service: BatchService) -> None:
    endpoint = webhooks.create(
        service.database,
        ANONYMOUS,
        url="https://example.com/hook",
        name="all",
        event_types=EVENT_TYPES,
        allowed=(),
    )

    def told() -> list[tuple[str, str]]:
        page, _ = deliveries.list_deliveries(
            service.database, ANONYMOUS, endpoint.id, PageRequest(100, newest_first=False)
        )
        return [(delivery.event_type, delivery.object_id) for delivery in page]

    cancelled = service.create(lines(2))
    service.validate(cancelled)
    service.runner.run()
    jobs = service.queued(cancelled)
    service.client.batches.cancel(cancelled)
    assert sorted(told()) == sorted(("response.cancelled", job_id) for job_id in jobs)
    service.complete(cancelled)
    assert told()[2:] == [("batch.cancelled", cancelled)]
    failed = service.create("{}\n")
    assert service.validate(failed).status == "failed"
    assert told()[3:] == [("batch.failed", failed)]
    with service.database.write() as connection:
        connection.execute(sa.update(Batch).values(ended_at=utcnow(-3 * 86_400)))
    assert batches.delete_batches(service.database, 2) == 2
    assert {event_type for event_type, _ in told()} == {"response.cancelled"}


def test_a_batch_can_be_cancelled_while_it_is_validated(service: BatchService) -> None:
    batch_id = service.create(lines(3))
    assert service.client.batches.cancel(batch_id).status == "cancelling"
    batch = service.complete(batch_id)
    assert (batch.status, batch.output_file_id, batch.error_file_id) == ("cancelled", None, None)
    assert count(service, BatchLine) == count(service, Job) == 0


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
    assert count(service, Job) == batch_runner.MIN_WINDOW


def test_a_batch_that_was_taken_before_the_clock_was_set_back_goes_on(
    service: BatchService,
) -> None:
    batch_id = service.create(lines(1))
    assert batch_work.take_batch(service.database, batch_id, "lost") is not None
    service.shift(Batch, "leased_until", 7200)
    assert batch_work.take_batch(service.database, batch_id, "next") is not None
    service.end_leases()
    service.complete(batch_id)


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
    assert count(service, File) == 3, "two inputs and an output"
    set_age(2 * days + 60)
    assert batches.delete_batches(service.database, 2) == 1
    while files.sweep_files(service.database, 2):
        pass
    assert [batch.id for batch in service.client.batches.list()] == [open_batch]
    assert count(service, File) == count(service, FileChunk) == 1, "the open batch's input"
    assert len(service.lines(service.complete(open_batch).output_file_id)) == 3


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


def test_the_history_of_a_line_names_its_batch(service: BatchService) -> None:
    batch_id = service.create(line("my line"))
    service.validate(batch_id)
    service.runner.run()
    [job_id] = service.queued(batch_id)
    root = str(service.client.base_url).removesuffix("/v1/")
    history: Any = service.client.get(f"{root}/api/jobs/{job_id}", cast_to=object)
    assert history["batch"] == {"id": batch_id, "custom_id": "my line"}
    page = service.client.get(f"{root}/jobs/{job_id}", cast_to=str)
    assert batch_id in page
    assert "my line" in page
    assert json.loads(service.client.responses.retrieve(job_id).to_json())["metadata"] == {}


@pytest.mark.parametrize("endpoint", [RESPONSES, CHAT])
def test_an_erased_text_is_gone_from_the_output_file(service: BatchService, endpoint: str) -> None:
    """Its line says so, and all others stay where they are."""
    batch_id = service.create("".join(line(f"{n}", endpoint) for n in range(3)), endpoint)
    service.validate(batch_id)
    while not (queued := service.queued(batch_id)):
        service.runner.run()
    job_id = queued[1]
    finish(service.database, job_id)
    seal(service.database)

    def erase(*texts: str) -> list[str]:
        return erasing.erase(service.database, None, job_id, history, texts, erased_by="ann")

    with pytest.raises(LineNotWrittenError):
        erase("/attempts/0/output")
    done = service.complete(batch_id)
    before = service.lines(done.output_file_id)
    whole = service.client.files.content(done.output_file_id or "").read()
    assert erase("/question")[0] == "/question"
    assert service.lines(done.output_file_id) == before, "answers do not have it"
    erase("/attempts/0/output")
    after = service.lines(done.output_file_id)
    assert after["1"]["response"]["status_code"] == 410
    assert after["1"]["response"]["body"]["error"]["code"] == "erased"
    assert after["1"]["response"]["request_id"] == job_id
    assert (after["0"], after["2"]) == (before["0"], before["2"])
    assert len(service.client.files.content(done.output_file_id or "").read()) == len(whole)
    erase("/batch/custom_id")
    assert set(service.lines(done.output_file_id)) == {"0", "", "2"}


def test_the_custom_id_of_a_cancelled_line_is_erased(service: BatchService) -> None:
    """Its line has no answer, and names no job."""
    batch_id = service.create(line('a"1') + line("b"))
    service.validate(batch_id)
    while not (queued := service.queued(batch_id)):
        service.runner.run()
    cancellation.cancel(service.database, ANONYMOUS, queued[0])
    done = service.complete(batch_id)
    seal(service.database)
    before = service.lines(done.error_file_id)
    assert before.keys() == {'a"1'}
    erasing.erase(service.database, None, queued[0], history, ["/metadata"], erased_by="ann")
    assert service.lines(done.error_file_id) == before
    erasing.erase(service.database, None, queued[0], history, None, erased_by="ann")
    assert service.lines(done.error_file_id) == {"": {**before['a"1'], "custom_id": ""}}
    assert service.lines(done.output_file_id).keys() == {"b"}


def test_a_line_that_is_in_two_chunks_is_erased(
    service: BatchService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_answers, "CHUNK", 700)
    monkeypatch.setattr("jobs.use_cases.erasing.READ_CHUNKS", 1)
    batch_id = service.create(lines(4))
    done = service.complete(batch_id)
    seal(service.database)
    before = service.lines(done.output_file_id)
    for name, line_ in before.items():
        job_id = line_["response"]["request_id"]
        erasing.erase(service.database, None, job_id, history, None, erased_by="ann")
        whole = service.client.files.content(done.output_file_id or "").read()
        assert f'"{name}"'.encode() not in whole
    assert b"A text." not in whole
    assert [json.loads(each)["custom_id"] for each in whole.splitlines()] == [""] * 4
    assert count(service, FileChunk) > 4
