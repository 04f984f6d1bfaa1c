"""What is accepted as the input of a batch, and how the rest is refused."""

from __future__ import annotations

from typing import Any

import pytest
from openai import BadRequestError, RateLimitError

from jobs import batch_input
from jobs.models import Batch, BatchLine, Job
from jobs.use_cases import batches
from tests.integration.batch_api.service import CHAT, RESPONSES, BatchService, line, lines


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
    assert service.count(Job) == service.count(BatchLine) == 0


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
    assert service.count(Job) == 2


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
    assert service.count(Batch) == 0


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
    assert service.complete(first.id).status == "completed"
    assert service.client.batches.create(**parameters) == first
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
