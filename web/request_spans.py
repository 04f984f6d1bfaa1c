"""Spans of requests, sent when they end, by OpenTelemetry's SDK. They follow its conventions for HTTP and messaging.

A request has a span if its client's span is sampled, or if it submits a job: polls that nobody traces make no traces. The
job is below the span in which it is sent to the queue. What happens to it later is sent by whoever runs it
(`jobs.telemetry`). Queries are left out, since they may have texts, and so are addresses of clients.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from typing import Any
from urllib.parse import urlsplit

from flask import Flask, g, request
from werkzeug.wrappers import Response

from jobs.formats import extra
from jobs.telemetry_attributes import MESSAGING, QUEUE
from jobs.trace_context import TraceContext
from jobs.trace_receiver import ReceiverUnavailableError, SpansRefusedError, TraceReceiver
from web import tracing
from web.tracing import Sending

log = logging.getLogger(__name__)

SERVICE = "helixq-web"
#: Seconds between two requests to the receiver, and that one may take.
INTERVAL, TIMEOUT = 1.0, 3.0
#: Other methods are recorded as ``_OTHER``, since clients may send any word.
METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE"}


def _load(name: str, package: str) -> Any:
    return extra.load(name, "OpenTelemetry", package=package, of="otlp")


class RequestSpans:
    """The spans of an application's requests."""

    def __init__(self, endpoint: str) -> None:
        """
        Args:
            endpoint: the receiver's address.

        Raises:
            NotInstalledError: OpenTelemetry's SDK is not installed.
        """
        self._api = _load("opentelemetry.trace", "opentelemetry-api")
        sdk = _load("opentelemetry.sdk.trace", "opentelemetry-sdk")
        resource = _load("opentelemetry.sdk.resources", "opentelemetry-sdk").Resource.create(
            {"service.name": SERVICE, "service.version": version("helixq")}
        )
        export = _load("opentelemetry.sdk.trace.export", "opentelemetry-sdk")
        self._exporter = _exporter(export, endpoint)
        # OTEL_TRACES_SAMPLER sets the sampler. By default it follows the client's span, and samples all without one.
        self._provider = sdk.TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(
            export.BatchSpanProcessor(self._exporter, schedule_delay_millis=INTERVAL * 1000)
        )
        self._tracer = self._provider.get_tracer("helixq", version("helixq"))

    def init_app(self, app: Flask) -> None:
        """Make the spans of an application's requests."""
        app.before_request(self._begin)
        app.after_request(self._reply)

    def close(self) -> None:
        """Send the spans that have ended, and stop."""
        self._exporter.is_closing = True
        self._provider.shutdown()

    def sending(self) -> Iterator[Sending]:
        """Yield once, while a job is submitted."""
        server, given = self._server_span(), tracing.given()
        span = self._tracer.start_span(
            f"send {QUEUE}",
            self._api.set_span_in_context(server),
            self._api.SpanKind.PRODUCER,
            {
                "messaging.system": MESSAGING,
                "messaging.destination.name": QUEUE,
                "messaging.operation.name": "send",
                "messaging.operation.type": "send",
            },
        )
        # A trace that is not sampled has no span here, and the client's is the parent of what follows.
        context = span.get_span_context()
        sent = Sending(_trace(context) if context.trace_flags.sampled or given is None else given)
        try:
            yield sent
        except BaseException as error:
            # It may be a refusal, which is no fault; the request's span has the status of the reply.
            span.set_attribute("error.type", type(error).__name__)
            raise
        finally:
            if sent.job_id is not None:
                span.set_attribute("messaging.message.conversation_id", sent.job_id)
                server.set_attribute("gen_ai.response.id", sent.job_id)
            span.end()

    def _begin(self) -> None:
        g.began_at = time.time_ns()
        given = tracing.given()
        if given is not None and given.is_sampled:
            self._server_span()

    def _server_span(self) -> Any:
        """Return the current request's span, which began with it."""
        if "span" not in g:
            address, port = split_host(request.host)
            attributes = {
                "http.request.method": _method(),
                "http.route": _route(),
                "url.path": request.path,
                "url.scheme": request.scheme,
                "server.address": address,
                "server.port": port,
                "user_agent.original": request.headers.get("User-Agent"),
            }
            given = tracing.given()
            g.span = self._tracer.start_span(
                f"{_method()} {_route() or ''}".rstrip(),
                None if given is None else self._above(given),
                self._api.SpanKind.SERVER,
                {name: value for name, value in attributes.items() if value is not None},
                start_time=g.began_at,
            )
        return g.span

    def _above(self, given: TraceContext) -> Any:
        """Return a client's span as the SDK's context."""
        context = self._api.SpanContext(
            int(given.trace_id, 16),
            int(given.span_id, 16),
            is_remote=True,
            trace_flags=self._api.TraceFlags(given.flags),
            trace_state=self._api.TraceState.from_header([given.state or ""]),
        )
        return self._api.set_span_in_context(self._api.NonRecordingSpan(context))

    def _reply(self, response: Response) -> Response:
        span = g.get("span")
        if span is not None:
            status = response.status_code
            span.set_attribute("http.response.status_code", status)
            if status >= 500:
                span.set_attribute("error.type", str(status))
                span.set_status(self._api.StatusCode.ERROR)
            # A stream ends later.
            response.call_on_close(span.end)
        return response


def split_host(host: str) -> tuple[str, int | None]:
    """Return the address and the port, if it has one, of a ``Host`` header; all of one that is malformed."""
    try:
        parts = urlsplit(f"//{host}")
        return parts.hostname or host, parts.port
    except ValueError:
        return host, None


def _method() -> str:
    return request.method if request.method in METHODS else "_OTHER"


def _route() -> str | None:
    return None if request.url_rule is None else request.url_rule.rule


def _trace(context: Any) -> TraceContext:
    return TraceContext(
        f"{context.trace_id:032x}",
        f"{context.span_id:016x}",
        int(context.trace_flags),
        context.trace_state.to_header() or None,
    )


def _exporter(export: Any, endpoint: str) -> Any:
    """Return an exporter of the SDK that sends to a receiver as the duties of workers do."""
    encoder = _load(
        "opentelemetry.exporter.otlp.proto.common.trace_encoder",
        "opentelemetry-exporter-otlp-proto-common",
    )
    receiver = TraceReceiver(endpoint, TIMEOUT, log)

    class Exporter(export.SpanExporter):  # type: ignore[misc]  # imported when it is needed
        """Sends spans. Those that the receiver does not take are lost: they are about requests, not jobs."""

        is_closing = False

        def export(self, spans: Sequence[Any]) -> Any:
            if self.is_closing and receiver.is_away:
                return export.SpanExportResult.FAILURE
            try:
                receiver.send(encoder.encode_spans(spans).SerializeToString())
            except SpansRefusedError as error:
                log.error("the receiver of traces refuses spans of requests: %s", error)
                return export.SpanExportResult.FAILURE
            except ReceiverUnavailableError:
                return export.SpanExportResult.FAILURE
            return export.SpanExportResult.SUCCESS

    return Exporter()
