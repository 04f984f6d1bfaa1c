"""The lines of a batch: from a line of its input to a request, and from a job to a line of its output."""

from __future__ import annotations

import json
import re
from typing import Any

from jobs.models import Job
from jobs.protocol import served_models
from jobs.protocol.body import NotFiniteError, check_depth, loads
from jobs.protocol.chat_completion import chat_completion, error_of
from jobs.protocol.chat_request import in_chat_terms
from jobs.protocol.errors import STATUSES, InvalidRequestError, ProtocolError, invalid_value
from jobs.protocol.request import Context, CreateResponse
from jobs.protocol.response import response
from jobs.protocol.validation import validate, validate_chat, validate_response

RESPONSES = "/v1/responses"
CHAT = "/v1/chat/completions"
#: What a batch can ask.
ENDPOINTS = (RESPONSES, CHAT)
#: The maximum number of bytes of a line: what a single request may have.
MAX_LINE = 1 << 20
MAX_CUSTOM_ID = 512
#: The priority of all lines: single questions go first.
PRIORITY = 0

_NAMES = ("custom_id", "method", "url", "body")


def parse_line(line: bytes) -> dict[str, Any]:
    """Parse a line of an input file.

    Raises:
        InvalidRequestError: it is not a JSON object.
    """
    try:
        data = loads(line)
    except (ValueError, RecursionError) as error:
        says_why = isinstance(error, json.JSONDecodeError | NotFiniteError)
        reason = f": {error}" if says_why else ""
        raise InvalidRequestError(
            f"The line is not valid JSON{reason}.", code="invalid_json_line"
        ) from error
    if not isinstance(data, dict):
        raise InvalidRequestError("The line must be a JSON object.", code="invalid_json_line")
    check_depth(data)
    return data


def custom_id_of(data: dict[str, Any]) -> str:
    """Return the custom id of a parsed line.

    Raises:
        InvalidRequestError: it has none, or not a valid one.
    """
    custom_id = data.get("custom_id")
    if custom_id is None:
        raise _missing("custom_id")
    if not isinstance(custom_id, str) or not 1 <= len(custom_id) <= MAX_CUSTOM_ID:
        raise invalid_value(
            "custom_id", f"`custom_id` must be a string of 1 to {MAX_CUSTOM_ID} characters."
        )
    if re.search("[\ud800-\udfff]", custom_id):
        raise invalid_value(
            "custom_id", "`custom_id` is not valid Unicode: it contains an unpaired surrogate."
        )
    return custom_id


def body_of(data: dict[str, Any], endpoint: str) -> dict[str, Any]:
    """Return the request's body in a parsed line.

    Raises:
        InvalidRequestError: the line is not one of a batch for ``endpoint``.
    """
    for name in _NAMES:
        if data.get(name) is None:
            raise _missing(name)
    if unknown := next((name for name in data if name not in _NAMES), None):
        raise InvalidRequestError(
            f"Unknown parameter: {unknown[:100]!r}. A line has `custom_id`, `method`, `url` and `body`.",
            code="unknown_parameter",
        )
    if data["method"] != "POST":
        raise InvalidRequestError("`method` must be `POST`.", code="invalid_method", param="method")
    if data["url"] != endpoint:
        raise InvalidRequestError(
            f"`url` must be `{endpoint}`, the endpoint of the batch.",
            code="invalid_url",
            param="url",
        )
    body = data["body"]
    if not isinstance(body, dict):
        raise InvalidRequestError(
            "Invalid type for `body`: expected an object.", code="invalid_type", param="body"
        )
    return body


def check_model(body: dict[str, Any]) -> None:
    """Check that a line asks a model that there is, if it names one.

    Raises:
        NotFoundError: it does not.
    """
    name = body.get("model")
    if isinstance(name, str):
        served_models.check_model(name, param="body.model")


def to_request(body: dict[str, Any], endpoint: str, chat_context: Context) -> CreateResponse:
    """Return the request of a line, after the same checks as for a single one.

    Args:
        body: of the line.
        endpoint: of the batch.
        chat_context: what of a chat's messages is asked, if the line does not say so.

    Raises:
        InvalidRequestError: the body is wrong, or asks for what a batch does not offer.
        NotFoundError: there is no such model.
    """
    if body.get("stream"):
        raise _unsupported("stream", "The answers of a batch are in its output file.")
    if body.get("priority"):
        raise _unsupported("priority", "Lines of a batch have the lowest priority.")
    body = {**body, "priority": PRIORITY}
    if endpoint == RESPONSES:
        return validate(body)
    request = validate_chat(body)
    try:
        return validate_response(request.to_response(chat_context), param="messages")
    except InvalidRequestError as error:
        raise in_chat_terms(error) from error


def answer_line(batch_id: str, number: int, custom_id: str, endpoint: str, job: Job) -> bytes:
    """Return the line of the output file for a job that has an answer.

    Args:
        batch_id: of the batch.
        number: of the line.
        custom_id: of the line.
        endpoint: of the batch.
        job: with its attempts loaded.

    Raises:
        ProtocolError: the job has no answer, because it failed or was cancelled.
    """
    if endpoint == CHAT:
        body = chat_completion(job)
    else:
        body = response(job)
        if (error := error_of(body, param="input")) is not None:
            raise error
    reply = {"status_code": 200, "request_id": job.id, "body": body}
    return _line(batch_id, number, custom_id, reply, None)


def refused_line(
    batch_id: str, number: int, custom_id: str, error: ProtocolError, request_id: str | None
) -> bytes:
    """Return the line of the error file for a request that failed, as its single reply would be."""
    reply = {
        "status_code": STATUSES[error.kind],
        "request_id": request_id,
        "body": {"error": error.to_dict()},
    }
    return _line(batch_id, number, custom_id, reply, None)


def unanswered_line(batch_id: str, number: int, custom_id: str, code: str, message: str) -> bytes:
    """Return the line of the error file for a request that was not answered."""
    return _line(batch_id, number, custom_id, None, {"code": code, "message": message})


def _line(
    batch_id: str,
    number: int,
    custom_id: str,
    reply: dict[str, Any] | None,
    error: dict[str, Any] | None,
) -> bytes:
    data = {
        "id": f"batch_req_{batch_id.removeprefix('batch_')}_{number}",
        "custom_id": custom_id,
        "response": reply,
        "error": error,
    }
    # In ASCII: some readers take U+2028 for the end of a line.
    return json.dumps(data, separators=(",", ":")).encode() + b"\n"


def _missing(name: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"Missing required parameter: `{name}`.", code="missing_required_parameter", param=name
    )


def _unsupported(name: str, reason: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"This value of `{name}` is not supported. {reason}",
        code="unsupported_parameter",
        param=name,
    )
