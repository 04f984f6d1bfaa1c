"""What the description says of an endpoint: parameters, replies and errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel

from jobs.protocol import schemas


@dataclass(frozen=True)
class Parameter:
    """A parameter of the query, or a header of the request."""

    name: str
    schema: Mapping[str, Any]
    description: str = ""
    place: Literal["query", "header"] = "query"


@dataclass(frozen=True)
class Reply:
    """A reply with a status."""

    description: str
    shape: type[BaseModel] | None = None
    #: Its media type or types, if it is not JSON.
    media: str | Sequence[str] | None = None
    #: Whether it may also be an event stream.
    streams: bool = False
    #: Its headers, each with what it says.
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Operation:
    """What an endpoint takes and replies."""

    tag: str
    replies: Mapping[int, Reply]
    body: type[BaseModel] | None = None
    #: The schema of the form that is the body instead, if it is one.
    form: Mapping[str, Any] | None = None
    parameters: tuple[Parameter, ...] = ()
    #: The statuses of its errors, besides those of all endpoints with its kind of errors.
    errors: tuple[int, ...] = ()
    #: Whether it needs no API key.
    is_open: bool = False
    #: Whether a ``POST`` makes or changes something, so that it takes an idempotency key.
    changes: bool = True


#: What the operations of each tag are for, in the order in which readers want them.
TAGS = {
    "Responses": "Ask questions, and follow their jobs: OpenAI's Responses API.",
    "Chat completions": "The same jobs in the shape of OpenAI's older API.",
    "Models": "What can be asked.",
    "Files and batches": "Many questions in a file: OpenAI's Batch API.",
    "Webhooks": "Where events are sent, and what became of them.",
    "Audits": "Histories, reviews, exports and statistics, and the transparency log.",
    "Health": "For load balancers and monitoring.",
}

#: The shapes of errors by blueprint, as `web.errors` has them: OpenAI's and RFC 9457's. All others are text.
ERROR_SHAPES: Mapping[str, type[BaseModel]] = {"v1": schemas.ErrorReply, "api": schemas.Problem}

#: What is wrong, by status; docs/http-errors.md has the codes.
ERRORS = {
    400: "A parameter is wrong, or the `Host` header where the server listens on a loopback address.",
    401: "No API key was given, or it is wrong, revoked or expired.",
    403: "The API key lacks a scope, or a page of another site requested a change.",
    404: "There is no such job, model, file, batch, webhook endpoint or delivery.",
    408: "Only a part of the request arrived within a minute.",
    409: "The job was cancelled, or has not ended, or is not in the transparency log yet.",
    412: "The response does not match `If-Match`.",
    413: "The body is too large.",
    415: "The body is not JSON, or its compression is unknown.",
    422: "The idempotency key was used with another body, or no stage of the job has finished.",
    424: "The receiver did not reply.",
    429: "The queue is full, or a limit of the API key is reached. `Retry-After` says when to retry.",
    500: "The server failed because of a bug, or the job failed.",
    503: "The database does not respond, or too many requests wait for jobs.",
}
#: The errors of all endpoints, and of those that have a body.
COMMON_ERRORS, BODY_ERRORS = (400, 401, 403, 429, 500, 503), (408, 413, 415)
