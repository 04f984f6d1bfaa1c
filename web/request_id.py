"""An id for each request: in the header of its reply, and in the log."""

from __future__ import annotations

import re
import secrets

from flask import Flask, Response, g, request

from jobs.logs import request_id

HEADER = "x-request-id"


def init_app(app: Flask) -> None:
    """Give an id to each request of an application."""
    app.before_request(_begin)
    app.after_request(_add_header)
    app.teardown_request(_end)


def _begin() -> None:
    request_id.set(_current_id())


def _end(_error: BaseException | None) -> None:
    request_id.set(None)  # The thread serves other requests.


def _current_id() -> str:
    """Return the current request's id: the one that a proxy or the client gave it, or a new one."""
    if "request_id" not in g:
        given = request.headers.get(HEADER, "")
        valid = re.fullmatch(r"[\w.:+/=-]{1,128}", given, re.ASCII)
        g.request_id = given if valid else f"req_{secrets.token_hex(16)}"
    current: str = g.request_id
    return current


def _add_header(response: Response) -> Response:
    response.headers[HEADER] = _current_id()
    return response
