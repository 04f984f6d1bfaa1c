"""The API's errors, and the error for each exception."""

from __future__ import annotations

import pytest
from sqlalchemy.exc import DataError, OperationalError

from jobs.errors import IdempotencyError, JobNotFoundError, QueueFullError, UserError
from jobs.protocol.errors import (
    MAX_MESSAGE,
    MAX_PARAM,
    ConflictError,
    ErrorKind,
    InternalError,
    InvalidRequestError,
    NotFoundError,
    ProtocolError,
    RateLimitedError,
    UnavailableError,
    translate,
)
from jobs.protocol.validation import validate


def test_an_error_has_openais_shape() -> None:
    error = InvalidRequestError("Wrong.", code="invalid_value", param="input.0.role")
    assert error.to_dict() == {
        "message": "Wrong.",
        "type": "invalid_request_error",
        "code": "invalid_value",
        "param": "input.0.role",
    }
    assert str(error) == "Wrong."
    assert isinstance(error, UserError)


def test_errors_quote_a_part_of_what_is_long() -> None:
    """100 errors of a batch's lines are stored with it, and each list of batches has them."""
    name = f"first{'x' * 1_000_000}last"
    for wrong, start, end in (
        ({name: 1}, "Unknown parameter: `firstxxx", "`priority`."),
        ({"model": name}, "No such model: 'firstxxx", "has one model, 'helixnet'."),
        ({"metadata": {name: 1}}, "Invalid key in `metadata`", "at most 64 characters."),
        ({"metadata": {name: "\ud800"}}, "`metadata.firstxxx", "an unpaired surrogate."),
    ):
        with pytest.raises(ProtocolError) as caught:
            validate({"input": "Why?", **wrong})
        error = caught.value
        assert error.message.startswith(start)
        assert error.message.endswith(end)
        assert len(error.message) <= MAX_MESSAGE
        assert len(error.param or "") <= MAX_PARAM


@pytest.mark.parametrize(
    ("error", "kind", "type_"),
    [
        (NotFoundError, ErrorKind.NOT_FOUND, "invalid_request_error"),
        (ConflictError, ErrorKind.CONFLICT, "invalid_request_error"),
        (RateLimitedError, ErrorKind.RATE_LIMITED, "rate_limit_error"),
        (UnavailableError, ErrorKind.UNAVAILABLE, "server_error"),
        (InternalError, ErrorKind.INTERNAL, "server_error"),
    ],
)
def test_each_kind_has_a_type(error: type[ProtocolError], kind: ErrorKind, type_: str) -> None:
    assert error.kind is kind
    assert error("Message.", code="code").to_dict()["type"] == type_


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (JobNotFoundError("resp_1"), ErrorKind.NOT_FOUND, "not_found"),
        (QueueFullError(), ErrorKind.RATE_LIMITED, "queue_full"),
        (IdempotencyError(), ErrorKind.CONFLICT, "idempotency_key_reused"),
        (OperationalError("", {}, Exception("gone")), ErrorKind.UNAVAILABLE, "unavailable"),
        (DataError("", {}, Exception("secret")), ErrorKind.INTERNAL, "server_error"),
        (ValueError("secret"), ErrorKind.INTERNAL, "server_error"),
    ],
)
def test_exceptions_become_errors_of_the_api(error: Exception, kind: ErrorKind, code: str) -> None:
    translated = translate(error)
    assert (translated.kind, translated.code) == (kind, code)
    assert "secret" not in translated.message


def test_a_missing_job_is_named() -> None:
    assert "resp_1" in translate(JobNotFoundError("resp_1")).message


def test_an_error_of_the_api_stays_as_it_is() -> None:
    error = InvalidRequestError("Wrong.", code="invalid_value")
    assert translate(error) is error
