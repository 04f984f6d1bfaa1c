"""An id for each request: in the header of its reply, and in the log, beside that of the job that it is about."""

from __future__ import annotations

import re
import secrets

from flask import Flask, Response, g, request

from jobs import logs
from jobs.ids import is_id
from web import tracing

HEADER = "x-request-id"


def init_app(app: Flask) -> None:
    """Give an id to each request of an application."""
    app.before_request(_begin)
    app.after_request(_add_header)


def _begin() -> None:
    job_id = (request.view_args or {}).get("job_id", "")
    # A path may contain anything, and log lines are shown on terminals.
    of_job = {"job_id": job_id} if is_id(job_id, "resp_") else {}
    trace = tracing.given()
    of_trace = {} if trace is None else {"trace_id": trace.trace_id}
    # The thread forgets it after the request (`web.dispatcher`).
    logs.begin(request_id=_current_id(), **of_job, **of_trace)


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
