"""Histories as OpenTelemetry traces, following the semantic conventions for generative AI.

A job's span is the invocation of the agent ``helixnet``. Below it, a span for each attempt at a stage says that a worker
processed its message, and one below that is the request to the model, with the prompt, the text, the sampling and the
tokens. The ratings of a review are events of the span whose text they are about. If that span was sent before the
review, they are events of a span of their own below it. Erased texts are left out. Names of attributes are those of
the conventions (https://github.com/open-telemetry/semantic-conventions-genai); see `jobs.telemetry_attributes`.

A job whose request belongs to a trace is a part of that one (`jobs.trace_context`); others are traces of their own. All
ids are hashes of the job's id, so that a job that is exported again is the same trace.
"""

from __future__ import annotations

import base64
import datetime as dt
import json
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import version
from typing import Any

from jobs import trace_context
from jobs.formats import extra
from jobs.pipeline import MODEL
from jobs.telemetry_attributes import (
    FAILED,
    PROVIDER,
    QUEUE,
    Value,
    last,
    of_attempt,
    of_job,
    of_message,
)
from jobs.times import microseconds
from jobs.tlog.record import without_erased

#: Fields of spans that are bytes, which OTLP's JSON has in hexadecimal and protobuf's in base64.
_IDS = ("traceId", "spanId", "parentSpanId")
#: The ratings of a review, and the roles whose texts they are about.
_RATED = {"critique": "critic", "regeneration": "regenerator"}

#: A review: the history of its job, and its id.
Rating = tuple[Mapping[str, Any], str]


class Exporter:
    """Turns histories into requests of OTLP (`ExportTraceServiceRequest`).

    Raises:
        NotInstalledError: opentelemetry-proto is not installed.
    """

    def __init__(self) -> None:
        def load(name: str) -> Any:
            module = f"opentelemetry.proto.{name}"
            return extra.load(module, "OpenTelemetry", package="opentelemetry-proto", of="otlp")

        self._service = load("collector.trace.v1.trace_service_pb2")
        self._trace = load("trace.v1.trace_pb2")
        self._common = load("common.v1.common_pb2")
        self._resource = load("resource.v1.resource_pb2")

    def to_protobuf(
        self, histories: Iterable[Mapping[str, Any]], ratings: Iterable[Rating] | None = None
    ) -> bytes:
        """Return a request as a server takes it.

        Args:
            histories: of the jobs to send.
            ratings: reviews to send as spans of their own; then the jobs' spans have none. None for those of the
                histories, as events of the jobs' spans.
        """
        data: bytes = self._request(histories, ratings).SerializeToString()
        return data

    def to_json(self, histories: Iterable[Mapping[str, Any]]) -> str:
        """Return a request as a line of OTLP's JSON."""
        from google.protobuf.json_format import MessageToDict

        request = MessageToDict(self._request(histories), use_integers_for_enums=True)
        for resource in request.get("resourceSpans", []):
            for scope in resource["scopeSpans"]:
                for span in scope.get("spans", []):
                    for name in _IDS:
                        if name in span:
                            span[name] = base64.b64decode(span[name]).hex()
        return json.dumps(request, separators=(",", ":"))

    def _request(
        self, histories: Iterable[Mapping[str, Any]], ratings: Iterable[Rating] | None = None
    ) -> Any:
        service = {"service.name": PROVIDER, "service.version": version("helixq")}
        scope = self._common.InstrumentationScope(name=PROVIDER, version=version("helixq"))
        spans = [s for history in histories for s in self._spans(history, rated=ratings is None)]
        spans += [s for rating in ratings or () for s in self._rating_spans(*rating)]
        return self._service.ExportTraceServiceRequest(
            resource_spans=[
                self._trace.ResourceSpans(
                    resource=self._resource.Resource(attributes=self._attributes(service)),
                    scope_spans=[self._trace.ScopeSpans(scope=scope, spans=spans)],
                )
            ]
        )

    def _spans(self, history: Mapping[str, Any], *, rated: bool) -> Iterator[Any]:
        """Yield the spans of a job, with its ratings or without; none if it has not ended."""
        if history["finished_at"] is None:
            return
        history, _ = without_erased(history, lambda _: None)
        error = history["error"]
        common, root = _trace(history)
        above = trace_context.parse(history.get("traceparent"))
        kinds = self._trace.Span
        yield self._trace.Span(
            **common,
            span_id=root,
            parent_span_id=b"" if above is None else bytes.fromhex(above.span_id),
            name=f"invoke_agent {MODEL}",
            kind=kinds.SPAN_KIND_SERVER if above is None else kinds.SPAN_KIND_INTERNAL,
            start_time_unix_nano=_nanoseconds(history["created_at"]),
            end_time_unix_nano=_nanoseconds(history["finished_at"]),
            attributes=self._attributes(of_job(history)),
            status=self._status((error["message"] or error["code"]) if error else None),
        )
        for number in range(len(history["attempts"])):
            yield from self._attempt_spans(history, number, rated=rated)

    def _attempt_spans(
        self, history: Mapping[str, Any], number: int, *, rated: bool
    ) -> Iterator[Any]:
        """Yield the spans of an attempt of a job that has ended: of its message, and below it of its text."""
        job_id, attempt = history["id"], history["attempts"][number]
        common, root = _trace(history)
        kinds = self._trace.Span
        failed = attempt["status"] in FAILED
        times = {
            "start_time_unix_nano": _nanoseconds(attempt["started_at"]),
            "end_time_unix_nano": _nanoseconds(attempt["finished_at"] or history["finished_at"]),
            "status": self._status((attempt["error"] or attempt["status"]) if failed else None),
        }
        process = bytes.fromhex(trace_context.process_span(job_id, number))
        yield self._trace.Span(
            **common,
            **times,
            span_id=process,
            parent_span_id=root,
            name=f"process {QUEUE}",
            kind=kinds.SPAN_KIND_CONSUMER,
            attributes=self._attributes(of_message(job_id, attempt)),
        )
        events = []
        if attempt["first_token_at"] is not None:
            time = _nanoseconds(attempt["first_token_at"])
            events.append(kinds.Event(name="helixq.first_token", time_unix_nano=time))
        for review in history["reviews"] if rated else ():
            of_texts = self._ratings(history, review)
            events += [event for rated_number, event in of_texts if rated_number == number]
        elsewhere = attempt.get("server") is not None
        yield self._trace.Span(
            **common,
            **times,
            span_id=bytes.fromhex(trace_context.attempt_span(job_id, number)),
            parent_span_id=process,
            name=f"text_completion {MODEL}",
            kind=kinds.SPAN_KIND_CLIENT if elsewhere else kinds.SPAN_KIND_INTERNAL,
            attributes=self._attributes(of_attempt(attempt)),
            events=events,
        )

    def _rating_spans(self, history: Mapping[str, Any], review_id: str) -> Iterator[Any]:
        """Yield a span for each rating of a review, below the span of the text that it is about."""
        history, _ = without_erased(history, lambda _: None)
        job_id = history["id"]
        for review in history["reviews"]:
            if review["id"] != review_id:
                continue
            time = _nanoseconds(review["created_at"])
            for number, event in self._ratings(history, review):
                role = history["attempts"][number]["role"]
                common, _ = _trace(history)
                yield self._trace.Span(
                    **common,
                    span_id=bytes.fromhex(trace_context.review_span(job_id, review_id, number)),
                    parent_span_id=bytes.fromhex(trace_context.attempt_span(job_id, number)),
                    name=f"review {role}",
                    kind=self._trace.Span.SPAN_KIND_INTERNAL,
                    start_time_unix_nano=time,
                    end_time_unix_nano=time,
                    attributes=event.attributes,
                    events=[event],
                    status=self._status(None),
                )

    def _ratings(
        self, history: Mapping[str, Any], review: Mapping[str, Any]
    ) -> Iterator[tuple[int, Any]]:
        """Yield the ratings of a review as events, each after the number of the attempt whose text it is about.

        That is the last finished text of the role.
        """
        for name, role in _RATED.items():
            number = last(history, role)
            if review[name] is None or number is None:
                continue
            yield (
                number,
                self._trace.Span.Event(
                    name="gen_ai.evaluation.result",
                    time_unix_nano=_nanoseconds(review["created_at"]),
                    attributes=self._attributes(
                        {
                            "gen_ai.evaluation.name": name,
                            "gen_ai.evaluation.score.value": float(review[name]),
                            "gen_ai.evaluation.explanation": review["note"],
                            "gen_ai.response.id": history["id"],
                            "helixq.review.id": review["id"],
                            "helixq.reviewer": review["reviewer"],
                        }
                    ),
                ),
            )

    def _status(self, error: str | None) -> Any:
        if error is None:
            return self._trace.Status(code=self._trace.Status.STATUS_CODE_OK)
        return self._trace.Status(code=self._trace.Status.STATUS_CODE_ERROR, message=error)

    def _attributes(self, values: Mapping[str, Value]) -> list[Any]:
        return [
            self._common.KeyValue(key=name, value=self._value(value))
            for name, value in values.items()
            if value is not None
        ]

    def _value(self, value: Value) -> Any:
        if isinstance(value, bool):
            return self._common.AnyValue(bool_value=value)
        if isinstance(value, int):
            return self._common.AnyValue(int_value=value)
        if isinstance(value, float):
            return self._common.AnyValue(double_value=value)
        if isinstance(value, str):
            return self._common.AnyValue(string_value=value)
        values = [self._value(item) for item in value or ()]
        return self._common.AnyValue(array_value=self._common.ArrayValue(values=values))


def _trace(history: Mapping[str, Any]) -> tuple[dict[str, Any], bytes]:
    """Return the fields that all spans of a job have, and the id of its own."""
    trace = trace_context.of_job(history["id"], history.get("traceparent"))
    common = {"trace_id": bytes.fromhex(trace.trace_id), "flags": trace.flags}
    return common, bytes.fromhex(trace.span_id)


def _nanoseconds(time: str) -> int:
    return microseconds(dt.datetime.fromisoformat(time)) * 1000
