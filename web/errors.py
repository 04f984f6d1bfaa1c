"""What a failed request gets: the shape of the part of the site it asked.

``/v1`` speaks OpenAI's errors, ``/api`` RFC 9457, everything else a page.
"""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Any

from flask import Flask, Response, jsonify, make_response, render_template, request
from sqlalchemy.exc import SQLAlchemyError
from werkzeug.exceptions import HTTPException

from jobs import transient
from jobs.store import JobNotFoundError, QueueFullError

log = logging.getLogger(__name__)

#: Seconds after which a client may try again what the service could not do now.
RETRY_AFTER = 5


class RequestError(Exception):
    """A request that cannot be served: the message says what was wrong and what would be right."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        kind: str = "invalid_request_error",
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.kind = kind


def init_app(app: Flask) -> None:
    app.register_error_handler(RequestError, respond)
    app.register_error_handler(HTTPException, _http)
    app.register_error_handler(JobNotFoundError, _not_found)
    app.register_error_handler(QueueFullError, _queue_full)
    app.register_error_handler(SQLAlchemyError, _database)
    app.register_error_handler(Exception, _unexpected)


def respond(error: RequestError) -> Response:
    """Say an error in the shape of the part of the site that was asked."""
    title = HTTPStatus(error.status).phrase
    # The slash after each, also where there is none.
    path = f"{request.path}/"
    if path.startswith("/v1/"):
        body: dict[str, Any] = {
            "message": error.message,
            "type": error.kind,
            "code": error.code,
            "param": error.param,
        }
        response = jsonify({"error": body})
    elif path.startswith("/api/"):
        body = {"title": title, "status": error.status, "detail": error.message, "code": error.code}
        response = jsonify(body)
        response.content_type = "application/problem+json"
    else:
        response = make_response(render_template("error.html", title=title, error=error))
    response.status_code = error.status
    if error.status in (429, 503):
        response.headers["Retry-After"] = str(RETRY_AFTER)
    return response


def _http(error: HTTPException) -> Response:
    status = error.code or 500
    if status < 400 or error.response is not None:
        return make_response(error)
    code, message = {
        404: ("not_found", f"There is nothing at {request.path}."),
        405: ("method_not_allowed", f"{request.path} does not take {request.method}."),
        413: ("request_too_large", "The request is larger than 1 MiB."),
    }.get(status, ("bad_request", error.description or HTTPStatus(status).description))
    kind = "server_error" if status >= 500 else "invalid_request_error"
    response = respond(RequestError(status, message, code=code, kind=kind))
    for name, value in error.get_headers():
        if name.lower() == "allow":
            response.headers[name] = value
    return response


def _not_found(error: JobNotFoundError) -> Response:
    message = f"There is no job with the id {str(error)!r}."
    return respond(RequestError(404, message, code="not_found"))


def _queue_full(_error: QueueFullError) -> Response:
    message = "Too many questions are waiting already; try again later."
    return respond(RequestError(429, message, code="queue_full", kind="rate_limit_error"))


def _database(error: SQLAlchemyError) -> Response:
    if not transient.passes(error):
        return _unexpected(error)
    log.error("the database failed a request: %s", transient.reason(error))
    message = "The database does not answer; try again later."
    return respond(RequestError(503, message, code="unavailable", kind="server_error"))


def _unexpected(error: Exception) -> Response:
    log.error("a request failed", exc_info=error)
    message = "Something went wrong in the server; its log says what."
    return respond(RequestError(500, message, code="server_error", kind="server_error"))
