"""Workers whose engine is a server elsewhere: real workers, without PyTorch."""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from jobs.pipeline import Role
from tests import vllm as fake
from tests.acceptance.conftest import Service, running
from tests.conftest import new_database
from tests.promptness import promptly
from tests.receiver import Receiver
from tests.servers import PATIENCE
from tests.vllm import KEY, NAMES, VLLM

#: A worker where PyTorch cannot be imported.
WITHOUT_PYTORCH = (sys.executable, "-m", "tests.acceptance.without_pytorch")


@pytest.fixture(scope="module")
def vllm() -> Iterator[VLLM]:
    server = VLLM()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def traces() -> Iterator[Receiver]:
    """A receiver of traces."""
    receiver = Receiver()
    yield receiver
    receiver.close()


@pytest.fixture(scope="module")
def service(
    request: pytest.FixtureRequest,
    vllm: VLLM,
    traces: Receiver,
    checkpoint: Path,
    socket_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Service]:
    """A service without a tokenizer: only the server counts tokens."""
    folder = socket_folder / "elsewhere"
    database = new_database("postgresql", request, tmp_path_factory.mktemp("db"))
    settings = vllm.settings(
        HELIXQ_BASE_MODEL="", HELIXQ_SLOTS="2", HELIXQ_OTLP_ENDPOINT=traces.url
    )
    with running(checkpoint, database, folder, program=WITHOUT_PYTORCH, **settings) as service:
        yield service


class Spans:
    """The spans that a receiver has got, by name; several of one name in the order of their starts."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver

    def of(self, trace_id: str, count: int) -> dict[str, list[Any]]:
        """Wait until so many spans of a trace have come."""
        for requests in itertools.count(1):
            found = [
                span
                for request in self._receiver.wait_for(requests)
                for resource in ExportTraceServiceRequest.FromString(request.body).resource_spans
                for span in resource.scope_spans[0].spans
                if span.trace_id.hex() == trace_id
            ]
            if len(found) >= count:
                break
        named: dict[str, list[Any]] = {}
        for span in sorted(found, key=lambda span: int(span.start_time_unix_nano)):
            named.setdefault(span.name, []).append(span)
        return named

    @property
    def trace_ids(self) -> set[str]:
        return {
            span.trace_id.hex()
            for request in self._receiver.received
            for resource in ExportTraceServiceRequest.FromString(request.body).resource_spans
            for span in resource.scope_spans[0].spans
        }


def attributes(span: Any) -> dict[str, Any]:
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in span.attributes}


def ask(service: Service, **headers: str) -> str:
    with service.http() as http:
        body = {"input": "What is 1 + 1?", "background": True}
        reply = http.post("/v1/responses?q=secret", json=body, headers=headers)
    assert service.wait(reply.json()["id"])["status"] == "completed"
    return str(reply.json()["id"])


def test_one_trace_from_the_clients_span_to_the_engines_server(
    service: Service, vllm: VLLM, traces: Receiver
) -> None:
    vllm.traces.clear()
    vllm.replies = [fake.busy]
    trace_id, client = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    job = ask(service, traceparent=f"00-{trace_id}-{client}-01", tracestate="vendor=x,other=y")
    spans = Spans(traces).of(trace_id, 9)
    assert {name: len(of_name) for name, of_name in spans.items()} == {
        "POST /v1/responses": 1,
        "send helixq": 1,
        "invoke_agent helixnet": 1,
        "process helixq": 3,
        "text_completion helixnet": 3,
    }
    [request], [sent], [agent] = list(spans.values())[:3]
    assert request.parent_span_id.hex() == client
    assert (sent.parent_span_id, agent.parent_span_id) == (request.span_id, sent.span_id)
    told = attributes(request)
    assert (told["http.response.status_code"], told["url.path"]) == (202, "/v1/responses")
    assert told["gen_ai.response.id"] == job
    assert attributes(sent)["messaging.message.conversation_id"] == job
    assert b"secret" not in b"".join(each.body for each in traces.received)
    # A line that the engine's thread writes has the stage that it is about.
    line = service.worker.wait_for(f"trying again in .* replied with 429.* job_id={job}")
    for field in ("stage=0", "role=actor", "attempt=1", f"trace_id={trace_id}"):
        assert f" {field}" in line
    service.worker.wait_for(f"{job}: critic finished: 5 tokens, stop, by {vllm.url}")
    history: Any = service.history(job)
    assert history["traceparent"] == f"00-{trace_id}-{sent.span_id.hex()}-01"
    for process, text, attempt, header in zip(
        spans["process helixq"],
        spans["text_completion helixnet"],
        history["attempts"],
        vllm.traces[1:],
        strict=True,
    ):
        assert (process.parent_span_id, text.parent_span_id) == (agent.span_id, process.span_id)
        # The server's own spans are below the request to it.
        assert header == (f"00-{trace_id}-{text.span_id.hex()}-01", "vendor=x,other=y")
        assert attempt["server"] == vllm.url
        told = attributes(text)
        assert (told["server.address"], told["server.port"]) == ("127.0.0.1", vllm.port)
        assert (told["gen_ai.operation.name"], told["helixq.role"]) == (
            "text_completion",
            attempt["role"],
        )
    assert [
        (span.kind, name) for name, of_name in spans.items() for span in of_name[:1]
    ] == [
        (Span.SPAN_KIND_SERVER, "POST /v1/responses"),
        (Span.SPAN_KIND_PRODUCER, "send helixq"),
        (Span.SPAN_KIND_INTERNAL, "invoke_agent helixnet"),
        (Span.SPAN_KIND_CONSUMER, "process helixq"),
        (Span.SPAN_KIND_CLIENT, "text_completion helixnet"),
    ]  # fmt: skip


def test_without_a_client_a_trace_begins_with_the_request_and_an_unsampled_one_is_not_sent(
    service: Service, vllm: VLLM, traces: Receiver
) -> None:
    vllm.traces.clear()
    unsampled = f"00-{'7' * 32}-{'8' * 16}-00"
    for given in (unsampled, f"00-{'0' * 32}-{'8' * 16}-01"):
        job = ask(service, traceparent=given)
        history: Any = service.history(job)
        if given == unsampled:
            assert history["traceparent"] == unsampled
            assert [header.split("-")[1::2] for header, _ in vllm.traces if header] == [
                ["7" * 32, "00"]
            ] * 3
    # The second one is in the log after the first one, which would have been sent before it.
    trace_id = history["traceparent"].split("-")[1]
    [request] = Spans(traces).of(trace_id, 9)["POST /v1/responses"]
    assert request.parent_span_id == b""
    assert "7" * 32 not in Spans(traces).trace_ids
    # Polls of nobody who traces have no spans.
    assert b"/v1/responses/<" not in b"".join(each.body for each in traces.received)


def attempts(history: dict[str, Any]) -> list[tuple[int, str]]:
    return [(a["position"], a["status"]) for a in history["attempts"]]


def test_a_job_runs_all_its_stages_there(service: Service, vllm: VLLM) -> None:
    vllm.bodies.clear()
    job = service.submit("What is 1 + 1?", seed=7)
    response: Any = service.wait(job)
    assert response["status"] == "completed"
    history: Any = service.history(job)
    text = "".join(vllm.text)
    assert [b["model"] for b in vllm.bodies] == [NAMES[role] for role in Role]
    for body, attempt in zip(vllm.bodies, history["attempts"], strict=True):
        assert body["prompt"] == attempt["prompt"]
        assert body["seed"] == attempt["seed"]
        assert attempt["output"] == text
        assert attempt["output_tokens"] == 5
        assert attempt["prompt_tokens"] == len(attempt["prompt"].split())
        assert attempt["finish_reason"] == "stop"
        assert attempt["started_at"] <= attempt["first_token_at"] <= attempt["finished_at"]
    assert text in vllm.bodies[1]["prompt"]
    worker = history["attempts"][0]["worker"]
    assert worker["engine"] == "openai"
    assert worker["served"]["critic"]["root"] == "/adapters/critic"
    assert worker["servers"][vllm.url]["version"] == "0.11.0"
    assert "digest" not in worker["adapters"]["actor"]
    with service.http() as http:
        assert http.get("/api/jobs", params={"adapter": NAMES[Role.ACTOR]}).status_code == 200
        page = http.get(f"/jobs/{job}").text
        assert "helix-actor" in page
        assert page.count(f"<dt>Server</dt><dd>{vllm.url}</dd>") == 3
    # Too long for the server, which nobody else can know.
    long = service.submit("word " * 5000)
    response = service.wait(long)
    assert response["status"] == "failed"
    assert response["error"]["code"] == "context_length_exceeded"
    assert KEY not in service.worker.output + str(history) + page


def test_a_cancel_ends_the_servers_work_within_a_second(service: Service, vllm: VLLM) -> None:
    jobs = []

    def cancel() -> float:
        vllm.go_on.clear()
        vllm.closed.clear()
        jobs.append(service.submit("What is 1 + 1?"))
        service.wait_for_text(jobs[-1])
        with service.http() as http:
            reply = http.post(f"/v1/responses/{jobs[-1]}/cancel").json()
            cancelled = time.monotonic()
            assert reply["status"] == "cancelled"
            assert vllm.closed.wait(PATIENCE)
        seconds = time.monotonic() - cancelled
        vllm.go_on.set()
        service.worker.wait_for(f"{jobs[-1]}: actor stopped")
        return seconds

    promptly(cancel, 1.0)
    history: Any = service.history(jobs[-1])
    assert attempts(history) == [(0, "cancelled")]
    assert history["attempts"][0]["output"] == " The"
    assert history["attempts"][0]["output_tokens"] is None


def test_a_worker_that_is_killed_and_a_server_that_breaks_off_lose_nothing(
    service: Service, vllm: VLLM
) -> None:
    vllm.go_on.clear()
    vllm.closed.clear()
    killed = service.submit("What is 1 + 1?")
    service.wait_for_text(killed)
    service.worker.kill()
    assert vllm.closed.wait(PATIENCE)
    vllm.go_on.set()
    service.start_worker()
    assert service.wait(killed)["status"] == "completed"
    vllm.replies = [fake.cut]
    broken = service.submit("What is 1 + 1?")
    service.worker.wait_for(f"{broken}: actor runs again")
    assert service.wait(broken)["status"] == "completed"
    for job, first in ((broken, "released"), (killed, "lost")):
        assert attempts(service.history(job)) == [
            (0, first),
            (0, "finished"),
            (1, "finished"),
            (2, "finished"),
        ]
    assert "Traceback" not in service.worker.output


def test_a_worker_whose_server_serves_another_model_fails_so_that_it_is_restarted(
    service: Service, vllm: VLLM
) -> None:
    vllm.root = "/other"
    service.worker.wait_for("stopping: .*; the next start registers what they serve now")
    assert service.worker.wait() == os.EX_TEMPFAIL
    service.start_worker()
