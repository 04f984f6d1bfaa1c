"""Errors of the API: a message, a code, the parameter at fault, and a kind.

A kind says what a client can do about an error. Each has an HTTP status, which the lines of a batch's error
file have too.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from jobs import transient
from jobs.errors import (
    BatchNotFoundError,
    CursorError,
    ErasedError,
    IdempotencyError,
    JobNotFoundError,
    LineNotWrittenError,
    NotEndedError,
    NothingToReplayError,
    NotImportedError,
    NotRetriableError,
    NotSealedError,
    PartNotFoundError,
    QueueFullError,
    QuotaExceededError,
    StatisticsError,
    StoredFileNotFoundError,
    TextNotFoundError,
    TooManyBatchesError,
    UserError,
)
from jobs.use_cases.deliveries import DeliveryNotFoundError, EndpointDisabledError
from jobs.use_cases.matching import StepCursorError
from jobs.use_cases.webhooks import EndpointError, EndpointNotFoundError


class ErrorKind(StrEnum):
    """What a client can do about an error."""

    #: Change the request.
    INVALID_REQUEST = "invalid_request"
    #: Ask for something that exists.
    NOT_FOUND = "not_found"
    #: Use another idempotency key.
    CONFLICT = "conflict"
    #: The job's state does not allow the request.
    WRONG_STATE = "wrong_state"
    #: Ask again when the job has come further.
    TOO_EARLY = "too_early"
    #: Retry later: the client, or all clients together, exceeded a limit.
    RATE_LIMITED = "rate_limited"
    #: Retry later: a part of the service does not respond, or is busy.
    UNAVAILABLE = "unavailable"
    #: Report a bug.
    INTERNAL = "internal"


#: The HTTP status of each kind.
STATUSES = {
    ErrorKind.INVALID_REQUEST: 400,
    ErrorKind.NOT_FOUND: 404,
    ErrorKind.CONFLICT: 422,
    ErrorKind.WRONG_STATE: 409,
    ErrorKind.TOO_EARLY: 409,
    ErrorKind.RATE_LIMITED: 429,
    ErrorKind.INTERNAL: 500,
    ErrorKind.UNAVAILABLE: 503,
}

#: OpenAI's ``type`` for each kind; ``invalid_request_error`` for all others.
_TYPES = {
    ErrorKind.RATE_LIMITED: "rate_limit_error",
    ErrorKind.UNAVAILABLE: "server_error",
    ErrorKind.INTERNAL: "server_error",
}


#: The maximum number of characters of a message and of the path of a parameter. Both quote what the client sent, and
#: those of a batch's lines are stored.
MAX_MESSAGE, MAX_PARAM = 1000, 200


def shortened(text: str, maximum: int) -> str:
    """Return a text with an ellipsis in the place of its middle if it is longer than a maximum."""
    if len(text) <= maximum:
        return text
    kept = maximum - 1
    return f"{text[: kept - kept // 2]}…{text[-(kept // 2) :]}"


class ProtocolError(UserError):
    """A request that cannot be served."""

    kind = ErrorKind.INVALID_REQUEST

    def __init__(self, message: str, *, code: str, param: str | None = None) -> None:
        """
        Args:
            message: one sentence or two: what is wrong, and what would be right. A long one is shortened, as is a
                long ``param``.
            code: the error's name for programs, one of those in ``docs/http-errors.md``.
            param: the path of the parameter at fault, such as ``input.0.role``.
        """
        message = shortened(message, MAX_MESSAGE)
        super().__init__(message)
        self.message = message
        self.code = code
        self.param = None if param is None else shortened(param, MAX_PARAM)

    def to_dict(self) -> dict[str, Any]:
        """Return OpenAI's error object."""
        return {
            "message": self.message,
            "type": _TYPES.get(self.kind, "invalid_request_error"),
            "code": self.code,
            "param": self.param,
        }


class InvalidRequestError(ProtocolError):
    """The request is wrong."""


def invalid_value(param: str | None, message: str) -> InvalidRequestError:
    """Return the error of a parameter that has a wrong value."""
    return InvalidRequestError(message, code="invalid_value", param=param)


class NotFoundError(ProtocolError):
    """The request names something that does not exist."""

    kind = ErrorKind.NOT_FOUND


class ConflictError(ProtocolError):
    """The request contradicts an earlier one."""

    kind = ErrorKind.CONFLICT


class CancelledError(ProtocolError):
    """The job was cancelled before it had an answer."""

    kind = ErrorKind.WRONG_STATE


class WrongStateError(ProtocolError):
    """The state of the job does not allow the request."""

    kind = ErrorKind.WRONG_STATE


class TooEarlyError(ProtocolError):
    """The request comes too early in the life of the job."""

    kind = ErrorKind.TOO_EARLY


class RateLimitedError(ProtocolError):
    """The service accepts no more for now."""

    kind = ErrorKind.RATE_LIMITED


class UnavailableError(ProtocolError):
    """A part of the service does not respond, or is busy."""

    kind = ErrorKind.UNAVAILABLE


class InternalError(ProtocolError):
    """The service has a bug."""

    kind = ErrorKind.INTERNAL


def translate(error: Exception) -> ProtocolError:
    """Return the API's error for an exception of this package or of the ones below.

    An exception that nobody expected becomes an `InternalError` that does not reveal it.
    """
    match error:
        case ProtocolError():
            return error
        case (
            JobNotFoundError()
            | StoredFileNotFoundError()
            | BatchNotFoundError()
            | EndpointNotFoundError()
            | DeliveryNotFoundError()
            | PartNotFoundError()
        ):
            return NotFoundError(str(error), code="not_found")
        case NotImportedError():
            return NotFoundError(str(error), code="not_imported")
        case CursorError():
            return InvalidRequestError(str(error), code="invalid_cursor", param="after")
        case EndpointError():
            message = str(error)
            return invalid_value(error.param, f"{message[0].upper()}{message[1:]}.")
        case EndpointDisabledError():
            return InvalidRequestError(str(error), code="webhook_endpoint_disabled")
        case StatisticsError():
            return InvalidRequestError(str(error), code=error.code, param=error.param)
        case NotRetriableError():
            return WrongStateError(str(error), code="not_retriable")
        case NothingToReplayError():
            return ConflictError(str(error), code="nothing_to_replay")
        case ErasedError():
            return ConflictError(str(error), code="erased")
        case TextNotFoundError():
            return InvalidRequestError(str(error), code="no_such_text", param="texts")
        case StepCursorError():
            return invalid_value("after", str(error))
        case NotEndedError():
            return TooEarlyError(str(error), code="not_ended")
        case NotSealedError():
            return TooEarlyError(str(error), code="not_sealed")
        case LineNotWrittenError():
            return TooEarlyError(str(error), code="line_not_written")
        case QueueFullError():
            return RateLimitedError(str(error), code="queue_full")
        case QuotaExceededError():
            return RateLimitedError(str(error), code="quota_exceeded")
        case TooManyBatchesError():
            return RateLimitedError(str(error), code="too_many_batches")
        case IdempotencyError():
            return ConflictError(str(error), code="idempotency_key_reused")
        case SQLAlchemyError() if transient.is_transient(error):
            return UnavailableError(
                "The database does not respond. Retry later.", code="unavailable"
            )
        case _:
            return InternalError(
                "The server failed because of a bug. Its log has the details.", code="server_error"
            )
