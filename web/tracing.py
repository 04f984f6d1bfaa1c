"""Which trace a request belongs to: that of its client, if it sends ``traceparent``, or one that begins here.

With `HELIXQ_OTLP_ENDPOINT` the request has spans of its own (`web.request_spans`). Without it nothing of OpenTelemetry is
imported, and the client's span is the parent of a job that the request submits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from flask import Flask, current_app, request

from jobs import trace_context
from jobs.settings import Settings
from jobs.trace_context import TraceContext


class Sending:
    """A job that is being submitted: the span that is its parent, and its id once it is known."""

    def __init__(self, trace: TraceContext | None) -> None:
        self.trace = trace
        self.job_id: str | None = None


class Spans(Protocol):
    """Makes the spans of requests."""

    def sending(self) -> Iterator[Sending]: ...
    def close(self) -> None: ...


def init_app(app: Flask, settings: Settings) -> None:
    """Trace the requests of an application, if there is a receiver.

    Raises:
        NotInstalledError: OpenTelemetry's SDK is not installed.
    """
    app.extensions["helixq.spans"] = None
    if settings.otlp_endpoint is not None:
        from web.request_spans import RequestSpans

        spans = RequestSpans(settings.otlp_endpoint)
        spans.init_app(app)
        app.extensions["helixq.spans"] = spans


def close(app: Flask) -> None:
    """Send the spans that have ended, and stop."""
    if (spans := _spans(app)) is not None:
        spans.close()


def given() -> TraceContext | None:
    """Return the client's span that is the parent of the current request; None if the request names none."""
    headers = request.headers
    traceparent = headers.get("traceparent")
    return (
        None if traceparent is None else trace_context.parse(traceparent, headers.get("tracestate"))
    )


@contextmanager
def sending() -> Iterator[Sending]:
    """Make the current request the parent of the job that is submitted in the block."""
    spans = _spans(current_app)
    if spans is None:
        yield Sending(given())
    else:
        yield from spans.sending()


def _spans(app: Flask) -> Spans | None:
    spans: Spans | None = app.extensions["helixq.spans"]
    return spans
