"""Errors as HTTP responses, in the shape of the part of the site that was requested.

``/v1`` has OpenAI's errors, ``/api`` those of RFC 9457, ``/log`` and ``/metrics`` plain text, and everything else
a page.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from http import HTTPStatus
from types import MappingProxyType

from flask import Flask, Response, current_app, jsonify, make_response, render_template, request
from flask.globals import request_ctx
from sqlalchemy.exc import SQLAlchemyError
from werkzeug.exceptions import BadHost, HTTPException

from jobs import transient
from jobs.protocol.errors import STATUSES, ErrorKind, ProtocolError, translate
from jobs.use_cases.files import MAX_FILE

log = logging.getLogger(__name__)

#: Seconds after which a client may retry what the service could not do.
RETRY_AFTER = 5

#: Endpoints of OpenAI's API, as clients request them whose base URL lacks ``/v1``, or that put another prefix there
#: by themselves: ``/openai/v1/chat/completions``.
_MISPLACED = re.compile(
    r"/(?P<prefix>(?:.+?/)??)(?P<endpoint>chat/completions|completions|embeddings|responses|models|files|batches)(?:/.*)?"
)


class HTTPError(ProtocolError):
    """An error of HTTP itself, such as a method that a path does not have."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        super().__init__(message, code=code)
        self.status = status
        self.headers = headers
        self.kind = ErrorKind.INTERNAL if status >= 500 else ErrorKind.INVALID_REQUEST
        if status == 429:
            self.kind = ErrorKind.RATE_LIMITED


def status_of(error: ProtocolError) -> int:
    """Return the HTTP status of an error."""
    return error.status if isinstance(error, HTTPError) else STATUSES[error.kind]


def headers_of(error: ProtocolError) -> dict[str, str]:
    """Return the headers that belong to an error, whatever the shape of the response."""
    headers = {"Retry-After": str(RETRY_AFTER)} if status_of(error) in (429, 503) else {}
    return {**headers, **error.headers} if isinstance(error, HTTPError) else headers


def init_app(app: Flask) -> None:
    """Handle all errors of an application."""
    app.register_error_handler(HTTPException, _handle_http)
    app.register_error_handler(Exception, _handle)


def error_response(error: ProtocolError) -> Response:
    """Return the response to a request that failed."""
    status = status_of(error)
    title = HTTPStatus(status).phrase
    # With the slash, a path that equals a prefix starts with it, too.
    path = f"{request.path}/"
    if path.startswith("/v1/"):
        response = jsonify(error=error.to_dict())
    elif path.startswith("/api/"):
        problem = {"type": "about:blank", "title": title, "status": status, "detail": error.message}
        response = jsonify(**problem, code=error.code, param=error.param)
        response.content_type = "application/problem+json"
    elif path.startswith(("/log/", "/metrics/")):
        response = make_response(f"{error.message}\n")
        response.mimetype = "text/plain"
    elif _MISPLACED.fullmatch(request.path):
        response = jsonify(error=error.to_dict())
    else:
        if request_ctx.url_adapter is None:
            # Flask routes no request whose host cannot be a name, and the page has links.
            request_ctx.url_adapter = current_app.url_map.bind("localhost")
        response = make_response(render_template("error.html", title=title, error=error))
    response.status_code = status
    response.headers.update(headers_of(error))
    return response


def translated(error: Exception) -> ProtocolError:
    """Return the API's error for an exception, and log it if it is none of the client's."""
    found = translate(error)
    if found.kind is ErrorKind.INTERNAL:
        log.error("request failed", exc_info=error)
    elif isinstance(error, SQLAlchemyError):
        log.error("request failed: the database does not respond: %s", transient.reason(error))
    return found


def _handle(error: Exception) -> Response:
    return error_response(translated(error))


def too_large(method: str, path: str) -> str:
    """Return what is wrong with a request whose body is too large."""
    if is_upload(method, path):
        return f"The file is larger than {MAX_FILE >> 20} MiB."
    return "The request body is larger than 1 MiB."


def is_upload(method: str, path: str) -> bool:
    """Return whether a request may have as large a body as a file."""
    return method == "POST" and path.rstrip("/") == "/v1/files"


def _hint(path: str) -> str:
    """Return what a client should request instead, as far as its path tells; an empty text otherwise."""
    # Without the address: behind a proxy with TLS, the scheme is not known here.
    if path.startswith("/v1/v1/"):
        return " The client adds `/v1` by itself: its base URL should end without it."
    if path.rstrip("/") == "/v1/completions":
        return " Ask with `/v1/chat/completions` or `/v1/responses`."
    misplaced = _MISPLACED.fullmatch(path)
    if misplaced is None or path.startswith("/v1/"):
        return ""
    if not misplaced["prefix"]:
        return " The base URL of clients ends with `/v1`."
    if misplaced["endpoint"] in ("completions", "embeddings"):
        return ""
    return f" OpenAI's API is at `/v1/{misplaced['endpoint']}`."


def _handle_http(error: HTTPException) -> Response:
    status = error.code or 500
    if status < 400 or error.response is not None:
        return make_response(error)
    code, message = {
        404: ("not_found", f"Nothing is served at {request.path}.{_hint(request.path)}"),
        405: ("method_not_allowed", f"{request.path} does not support {request.method}."),
        413: ("request_too_large", too_large(request.method, request.path)),
    }.get(status, ("bad_request", error.description or HTTPStatus(status).description))
    if request.headers.get("Upgrade", "").lower() == "websocket" and status in (400, 405):
        # Flask has no route of such a request, whatever its path and method.
        status, code = 400, "bad_request"
        message = "There are no WebSockets. Events come as a stream of `POST /v1/responses`."
    if isinstance(error, BadHost):
        message = "The `Host` header is not the name of a host."
    response = error_response(HTTPError(status, message, code=code))
    for name, value in error.get_headers():
        if name.lower() == "allow":
            response.headers[name] = value
    return response
