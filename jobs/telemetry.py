"""Histories as OpenTelemetry traces, by the semantic conventions for generative AI.

A job is a trace: its root span is the invocation of the agent ``helixnet``, and each attempt at a stage is a span below it
with the prompt, the text, the sampling and the tokens. Ratings of reviews are events of the span of the text that they
are about, or where that span was sent before, of a span of their own below it. Erased texts are left out. Names of attributes are those of the conventions
(https://github.com/open-telemetry/semantic-conventions-genai); what they do not have begins with ``helixq.``.

The ids of a trace and of its spans are hashes of the job's id, so that a job that is exported again is the same trace.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from jobs.formats import extra
from jobs.pipeline import MODEL
from jobs.tlog.entry import without_erased

PROVIDER = "helixq"
#: The sizes of ids in bytes.
TRACE_ID, SPAN_ID = 16, 8
#: Fields of spans that are bytes, which OTLP's JSON has in hexadecimal and protobuf's in base64.
_IDS = ("traceId", "spanId", "parentSpanId")
_FAILED = ("failed", "lost")
#: The ratings of a review, and the roles whose texts they are about.
_RATED = {"critique": "critic", "regeneration": "regenerator"}

Value = str | int | float | bool | Sequence[str] | None
#: A review: the history of its job, and its id.
Rating = tuple[Mapping[str, Any], str]


class Exporter:
    """Makes requests of OTLP (`ExportTraceServiceRequest`) of histories.

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

        told = MessageToDict(self._request(histories), use_integers_for_enums=True)
        for resource in told.get("resourceSpans", []):
            for scope in resource["scopeSpans"]:
                for span in scope.get("spans", []):
                    for name in _IDS:
                        if name in span:
                            span[name] = base64.b64decode(span[name]).hex()
        return json.dumps(told, separators=(",", ":"))

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
        """Yield the spans of a job that has ended, with its ratings or without; none of another."""
        if history["finished_at"] is None:
            return
        history, _ = without_erased(history, lambda _: None)
        job_id = history["id"]
        error = history["error"]
        common = {"trace_id": _id(job_id, TRACE_ID)}
        root = _id(f"{job_id}/job", SPAN_ID)
        yield self._trace.Span(
            **common,
            span_id=root,
            name=f"invoke_agent {MODEL}",
            kind=self._trace.Span.SPAN_KIND_SERVER,
            start_time_unix_nano=_nanoseconds(history["created_at"]),
            end_time_unix_nano=_nanoseconds(history["finished_at"]),
            attributes=self._attributes(_of_job(history)),
            status=self._status((error["message"] or error["code"]) if error else None),
        )
        for number, attempt in enumerate(history["attempts"]):
            finished_at = attempt["finished_at"] or history["finished_at"]
            failed = attempt["status"] in _FAILED
            events = []
            if attempt["first_token_at"] is not None:
                events.append(
                    self._trace.Span.Event(
                        name="helixq.first_token",
                        time_unix_nano=_nanoseconds(attempt["first_token_at"]),
                    )
                )
            if rated:
                for review in history["reviews"]:
                    of_text = self._ratings(history, review)
                    events += [event for rated_number, event in of_text if rated_number == number]
            yield self._trace.Span(
                **common,
                span_id=_id(f"{job_id}/{number}", SPAN_ID),
                parent_span_id=root,
                name=f"text_completion {MODEL}",
                kind=self._trace.Span.SPAN_KIND_INTERNAL,
                start_time_unix_nano=_nanoseconds(attempt["started_at"]),
                end_time_unix_nano=_nanoseconds(finished_at),
                attributes=self._attributes(_of_attempt(attempt)),
                events=events,
                status=self._status((attempt["error"] or attempt["status"]) if failed else None),
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
                yield self._trace.Span(
                    trace_id=_id(job_id, TRACE_ID),
                    span_id=_id(f"{job_id}/{review_id}/{number}", SPAN_ID),
                    parent_span_id=_id(f"{job_id}/{number}", SPAN_ID),
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
            number = _last(history, role)
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


def _of_job(history: Mapping[str, Any]) -> dict[str, Value]:
    error, number = history["error"], _last(history, "regenerator")
    final = None if number is None else history["attempts"][number]
    asked = [(t["role"], t["text"]) for t in history["turns"] or []]
    if history["question"] is not None:
        asked.append(("user", history["question"]))
    return {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.provider.name": PROVIDER,
        "gen_ai.agent.name": MODEL,
        "gen_ai.request.model": MODEL,
        "gen_ai.response.id": history["id"],
        "gen_ai.output.type": "text",
        "gen_ai.system_instructions": None
        if history["system"] is None
        else json.dumps([_part(history["system"])]),
        "gen_ai.input.messages": json.dumps([_message(*each) for each in asked]) if asked else None,
        "gen_ai.output.messages": None
        if final is None or final["output"] is None
        else json.dumps([_message("assistant", final["output"], final["finish_reason"])]),
        "error.type": error["code"] if error else None,
        "helixq.status": history["status"],
        "helixq.owner": history["owner"],
        "helixq.rounds": history["rounds"],
        "helixq.run": history["run"],
        "helixq.replay_of": history["replay_of"],
        "helixq.model.digest": history["model"],
        "helixq.digest": history["digest"],
        **{f"helixq.metadata.{name}": text for name, text in (history["metadata"] or {}).items()},
    }


def _of_attempt(attempt: Mapping[str, Any]) -> dict[str, Value]:
    worker, output, reason = attempt["worker"], attempt["output"], attempt["finish_reason"]
    adapter = worker.get("adapters", {}).get(attempt["role"], {})
    return {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": PROVIDER,
        "gen_ai.request.model": MODEL,
        "gen_ai.response.model": worker.get("base", {}).get("name", MODEL),
        "gen_ai.output.type": "text",
        "gen_ai.request.temperature": float(attempt["temperature"]),
        "gen_ai.request.top_k": attempt["top_k"],
        "gen_ai.request.top_p": float(attempt["top_p"]),
        "gen_ai.request.max_tokens": attempt["max_output_tokens"],
        "gen_ai.request.seed": attempt["seed"],
        "gen_ai.usage.input_tokens": attempt["prompt_tokens"],
        "gen_ai.usage.output_tokens": attempt["output_tokens"],
        "gen_ai.response.finish_reasons": None if reason is None else [reason],
        "gen_ai.input.messages": None
        if attempt["prompt"] is None
        else json.dumps([_message("user", attempt["prompt"])]),
        "gen_ai.output.messages": None
        if output is None
        else json.dumps([_message("assistant", output, reason)]),
        "error.type": attempt["status"] if attempt["status"] in _FAILED else None,
        "helixq.role": attempt["role"],
        "helixq.round": attempt["round"],
        "helixq.run": attempt["run"],
        "helixq.attempt": attempt["number"],
        "helixq.status": attempt["status"],
        "helixq.worker.id": worker["id"],
        "helixq.base.digest": worker.get("base", {}).get("digest"),
        "helixq.adapter.name": adapter.get("name"),
        "helixq.adapter.digest": adapter.get("digest"),
    }


def _last(history: Mapping[str, Any], role: str) -> int | None:
    """Return the number of the attempt with the last text of a role; None if there is none."""
    done = [n for n, a in enumerate(history["attempts"]) if a["status"] == "finished"]
    return next((n for n in reversed(done) if history["attempts"][n]["role"] == role), None)


def _message(role: str, text: str, finish_reason: str | None = None) -> dict[str, Any]:
    message: dict[str, Any] = {"role": role, "parts": [_part(text)]}
    return message if finish_reason is None else {**message, "finish_reason": finish_reason}


def _part(text: str) -> dict[str, str]:
    return {"type": "text", "content": text}


def _id(name: str, size: int) -> bytes:
    return hashlib.sha256(name.encode()).digest()[:size]


def _nanoseconds(time: str) -> int:
    """Return a time as whole nanoseconds, which a float could not hold."""
    since = dt.datetime.fromisoformat(time) - dt.datetime.fromtimestamp(0, dt.UTC)
    return since // dt.timedelta(microseconds=1) * 1000
