"""``python -m tests.receivers``: histories in a real receiver of traces, Arize Phoenix. `make receivers` runs it.

It installs Phoenix at the versions that are pinned here, and starts it and HelixQ servers. One's histories are exported
with `helixq jobs export --format otlp --endpoint …`, another sends its own as jobs end (`HELIXQ_OTLP_ENDPOINT`). Then it
asks Phoenix for them. The status is 1 if something is missing.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import click

from jobs.settings import DEMO_CHECKPOINT
from tests import servers
from tests.acceptance.conftest import Service
from tests.acceptance.conftest import running as serving
from tests.clients import environments
from tests.clients.server import WORKER
from tests.receivers import phoenix
from tests.receivers.phoenix import Phoenix

REQUIREMENTS = Path(__file__).parent / "requirements-phoenix.txt"
QUESTIONS = ("Why is the sky blue?", "Why do cats purr?\n漢字 🧬")


@click.command()
@click.option("--upgrade", is_flag=True, help="Pin the newest versions first.")
def main(*, upgrade: bool) -> None:
    """Export histories to Phoenix, and compare what it shows with them."""
    if upgrade:
        environments.compile_requirements("arize-phoenix", REQUIREMENTS)
    python = environments.create_python(environments.FOLDER / "phoenix", REQUIREMENTS)
    with tempfile.TemporaryDirectory(prefix="hq-") as name:
        folder = Path(name)
        with phoenix.running(python, folder / "phoenix") as receiver:
            exported = _exported(folder / "exported", receiver)
            wrong = compare(exported, receiver, live=False)
            sent = _sent(folder / "sent", receiver)
            wrong += compare(sent, receiver, live=True)
            histories = exported + sent
            wrong += compare_project(histories, receiver)
    for line in wrong:
        click.echo(line)
    click.echo(f"{len(histories)} histories, {len(wrong)} differences")
    sys.exit(bool(wrong))


def _exported(folder: Path, receiver: Phoenix) -> list[dict[str, Any]]:
    """Return histories that a command has sent."""
    with _serving(folder) as service:
        histories = _histories(service)
        for _ in range(2):  # The second time, the same traces.
            export = servers.forked(
                *("jobs", "export", "--format", "otlp", "--endpoint", receiver.endpoint),
                *("--url", service.url),
                environ=service.environ,
            )
            assert export.wait() == 0, export.output
            export.stop()
    return histories


def _sent(folder: Path, receiver: Phoenix) -> list[dict[str, Any]]:
    """Return histories that a server has sent by itself."""
    with _serving(folder, HELIXQ_OTLP_ENDPOINT=receiver.endpoint) as service:
        histories = _histories(service)
        receiver.spans(_count(histories, live=False) + _count(histories, live=True))
    return histories


def _serving(folder: Path, **settings: str) -> AbstractContextManager[Service]:
    database = f"sqlite:///{folder / 'jobs.sqlite3'}"
    return serving(DEMO_CHECKPOINT, database, folder, program=WORKER, **settings)


def _histories(service: Service) -> list[dict[str, Any]]:
    """Ask, and review the first answer; return the histories."""
    ids = [service.submit(question, metadata={"team": "blue"}) for question in QUESTIONS]
    for job_id in ids:
        service.wait(job_id)
    with service.http() as http:
        verdict = {"critique": 1, "regeneration": -1, "note": "It is metres."}
        http.post(f"/api/jobs/{ids[0]}/reviews", json=verdict).raise_for_status()
    give_up = time.monotonic() + servers.PATIENCE
    while True:  # nothing tells when a job is in the log, which gives its history the digest
        histories: list[Any] = [service.history(job_id) for job_id in ids]
        if all(history["digest"] for history in histories):
            return histories
        assert time.monotonic() < give_up
        time.sleep(0.2)


def _count(histories: list[dict[str, Any]], *, live: bool) -> int:
    """Return how many spans histories have."""
    # Of an attempt: that its message was processed, and the request to the model.
    count = sum(1 + 2 * len(history["attempts"]) for history in histories)
    if live:
        # The request that submitted a job, its first message, and each rating.
        count += 2 * len(histories) + sum(len(list(_ratings(history))) for history in histories)
    return count


def _ratings(history: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield what is rated, and the review."""
    for review in history["reviews"]:
        for rated in ("critique", "regeneration"):
            if review[rated] is not None:
                yield rated, review


def compare_project(histories: list[dict[str, Any]], receiver: Phoenix) -> list[str]:
    """Return what Phoenix counts otherwise than the histories have it, of which half were sent live."""
    attempts = [attempt for history in histories for attempt in history["attempts"]]
    half = len(histories) // 2
    right = {
        "traceCount": len(histories),
        "recordCount": _count(histories[:half], live=False) + _count(histories[half:], live=True),
        "tokenCountTotal": sum(a["prompt_tokens"] + a["output_tokens"] for a in attempts),
    }
    project = receiver.project()
    return [
        f"Phoenix counts {project[name]} as {name}, and it is {number}"
        for name, number in right.items()
        if project[name] != number
    ]


def compare(histories: list[dict[str, Any]], receiver: Phoenix, *, live: bool) -> list[str]:
    """Return what Phoenix lacks, or shows otherwise than the histories have it.

    It reads the attributes of the GenAI conventions, and makes its own of them: those that begin with ``llm.``.

    Args:
        histories: that it has received.
        receiver: that has received them.
        live: whether the server sent them, so that ratings are spans, and not events.
    """
    wrong: list[str] = []

    def check(what: str, shown: Any, right: Any) -> None:
        if shown != right:
            wrong.append(f"{what}: Phoenix shows {shown!r}, and it is {right!r}")

    names = {history["id"] for history in histories}
    every = receiver.spans(_count(histories, live=live))
    traces = {
        span["context"]["trace_id"]
        for span in every
        if span["attributes"].get("gen_ai.response.id") in names
    }
    spans = [span for span in every if span["context"]["trace_id"] in traces]
    check("spans", len(spans), _count(histories, live=live))
    check("traces", len(traces), len(histories))
    for history in histories:
        name = history["id"]
        own = [s for s in spans if s["attributes"].get("gen_ai.response.id") == name]
        roots = [s for s in own if s["name"].startswith("invoke_agent ")]
        check(f"{name}: roots", len(roots), 1)
        for root in roots:
            attributes = root["attributes"]
            check(f"{name}: kind", root["span_kind"], "AGENT")
            check(f"{name}: digest", attributes.get("helixq.digest"), history["digest"])
            check(f"{name}: question", _content(attributes, "input"), history["question"])
            check(
                f"{name}: answer",
                _content(attributes, "output"),
                history["attempts"][-1]["output"],
            )
            processed = [s for s in spans if s["parent_id"] == root["context"]["span_id"]]
            above = {s["context"]["span_id"] for s in processed}
            own = [s for s in spans if s["parent_id"] in above]
            own.sort(key=lambda span: str(span["start_time"]))
            check(f"{name}: stages", len(own), len(history["attempts"]))
            for span, attempt in zip(own, history["attempts"], strict=False):
                below = [s for s in spans if s["parent_id"] == span["context"]["span_id"]]
                events = [event for each in (span, *below) for event in each["events"]]
                _compare_stage(span, events, attempt, history, check)
    return wrong


def _compare_stage(
    span: dict[str, Any],
    events: list[dict[str, Any]],
    attempt: dict[str, Any],
    history: dict[str, Any],
    check: Any,
) -> None:
    attributes, name = span["attributes"], f"{history['id']}, {attempt['role']}"
    check(f"{name}: kind", span["span_kind"], "LLM")
    check(f"{name}: role", attributes.get("helixq.role"), attempt["role"])
    check(f"{name}: prompt", _content(attributes, "input"), attempt["prompt"])
    check(f"{name}: text", _content(attributes, "output"), attempt["output"])
    for kind, field in (("prompt", "prompt_tokens"), ("completion", "output_tokens")):
        check(f"{name}: tokens", attributes.get(f"llm.token_count.{kind}"), attempt[field])
    parameters = json.loads(attributes.get("llm.invocation_parameters", "{}"))
    for field in ("temperature", "top_k", "top_p", "seed"):
        check(f"{name}: {field}", parameters.get(field), attempt[field])
    rated = {"critic": "critique", "regenerator": "regeneration"}.get(attempt["role"], "")
    scores = [
        (event["attributes"]["gen_ai.evaluation.score.value"], review["note"])
        for event in events
        if event["name"] == "gen_ai.evaluation.result"
        for review in history["reviews"]
        if review["id"] == event["attributes"]["helixq.review.id"]
    ]
    right = [(review[rated], review["note"]) for what, review in _ratings(history) if what == rated]
    check(f"{name}: scores", scores, right)


def _content(attributes: dict[str, Any], side: str) -> str | None:
    """Return the last message that Phoenix shows on a side."""
    prefix, found = f"llm.{side}_messages.", None
    for number in range(10):
        found = attributes.get(f"{prefix}{number}.message.content", found)
    return found


if __name__ == "__main__":
    main()
