"""``python -m tests.receivers``: histories in a real receiver of traces, Arize Phoenix. `make receivers` runs it.

It installs Phoenix at the versions that are pinned here, starts it and a HelixQ server, exports histories with
`helixq jobs export --format otlp --endpoint …`, and asks Phoenix for them. The status is 1 if something is missing.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
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
        database = f"sqlite:///{folder / 'server' / 'jobs.sqlite3'}"
        with (
            serving(DEMO_CHECKPOINT, database, folder / "server", program=WORKER) as service,
            phoenix.running(python, folder / "phoenix") as receiver,
        ):
            histories = _histories(service)
            for _ in range(2):  # The second time, the same traces.
                export = servers.forked(
                    *("jobs", "export", "--format", "otlp", "--endpoint", receiver.endpoint),
                    *("--url", service.url),
                    environ=service.environ,
                )
                assert export.wait() == 0, export.output
                export.stop()
            wrong = compare(histories, receiver)
    for line in wrong:
        click.echo(line)
    click.echo(f"{len(histories)} histories, {len(wrong)} differences")
    sys.exit(bool(wrong))


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


def compare(histories: list[dict[str, Any]], receiver: Phoenix) -> list[str]:
    """Return what Phoenix lacks, or shows otherwise than the histories have it.

    It reads the attributes of the GenAI conventions, and makes its own of them: those that begin with ``llm.``.
    """
    wrong: list[str] = []

    def check(what: str, shown: Any, right: Any) -> None:
        if shown != right:
            wrong.append(f"{what}: Phoenix shows {shown!r}, and it is {right!r}")

    attempts = [attempt for history in histories for attempt in history["attempts"]]
    # Of an attempt: that its message was processed, and the request to the model.
    count = len(histories) + 2 * len(attempts)
    spans = receiver.spans(count)
    check("spans", len(spans), count)
    check("traces", len({span["context"]["trace_id"] for span in spans}), len(histories))
    project = receiver.project()
    check("counted traces", project["traceCount"], len(histories))
    check("counted spans", project["recordCount"], len(spans))
    tokens = sum(a["prompt_tokens"] + a["output_tokens"] for a in attempts)
    check("counted tokens", project["tokenCountTotal"], tokens)
    for history in histories:
        name = history["id"]
        roots = [s for s in spans if s["attributes"].get("gen_ai.response.id") == name]
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
                _compare_stage(span, attempt, history, check)
    return wrong


def _compare_stage(
    span: dict[str, Any], attempt: dict[str, Any], history: dict[str, Any], check: Any
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
        for event in span["events"]
        if event["name"] == "gen_ai.evaluation.result"
        for review in history["reviews"]
        if review["id"] == event["attributes"]["helixq.review.id"]
    ]
    right = [(r[rated], r["note"]) for r in history["reviews"] if r.get(rated) is not None]
    check(f"{name}: scores", scores, right)


def _content(attributes: dict[str, Any], side: str) -> str | None:
    """Return the last message that Phoenix shows on a side."""
    prefix, found = f"llm.{side}_messages.", None
    for number in range(10):
        found = attributes.get(f"{prefix}{number}.message.content", found)
    return found


if __name__ == "__main__":
    main()
