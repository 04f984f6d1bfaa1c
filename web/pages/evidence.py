"""The evidence of a job: what each attempt was given, what it wrote, and where; the record and its place in the log."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from jobs.models import Attempt, Job, Worker
from jobs.protocol.history import history
from jobs.times import rfc3339
from jobs.tlog.record import claimed_entry
from web.pages import timeline, view

#: The maximum number of characters of a text that a job's page has twice. Longer ones are on the attempt's page.
MAX_TEXT = 4000


@dataclass(frozen=True)
class Evidence:
    """What is known about an attempt."""

    #: Its index in the history's ``attempts``.
    index: int
    title: str
    attempt: Attempt
    outcome: str | None
    #: None for a text that was erased.
    prompt: str | None
    output: str | None
    #: Names and values, in order.
    facts: list[tuple[str, str]]

    @property
    def fits(self) -> bool:
        """Whether the texts are short enough for the job's page."""
        return len(self.prompt or "") + len(self.output or "") <= MAX_TEXT


def attempts(job: Job) -> list[Evidence]:
    """Return the evidence of all attempts, in the order in which they started."""
    return [_evidence(job, index, attempt) for index, attempt in enumerate(job.attempts)]


def workers(job: Job) -> list[tuple[Worker, list[tuple[str, str]]]]:
    """Return the workers of a job's attempts, each once, with what they ran."""
    found = {attempt.worker.id: attempt.worker for attempt in job.attempts}
    return [
        (worker, [("host", f"{worker.host}, process {worker.pid}"), *about(worker)])
        for worker in found.values()
    ]


def record(job: Job) -> dict[str, Any]:
    """Return a job's digest and the index of its entry, None each while there is none; where it ended; its erasures.

    Args:
        job: with its input items, its reviews and its erasures.
    """
    described = history(job)
    return {
        "digest": described["digest"],
        "index": claimed_entry(described),
        "origin": described["origin"],
        "erasures": described["erasures"],
    }


def _evidence(job: Job, index: int, attempt: Attempt) -> Evidence:
    title = view.title(job, attempt.role, attempt.round)
    number = f", attempt {attempt.number}" if attempt.number > 1 else ""
    run = f", run {attempt.run}" if job.run > 1 else ""
    erased = job.erased or {}
    greedy = " (greedy)" if attempt.temperature == 0 else ""
    omitted = attempt.worker.runtime.get("omitted_parameters", [])
    facts = [
        (
            "Sampling",
            f"temperature {attempt.temperature:g}{greedy}, "
            f"top-k {attempt.top_k}{_omitted('top_k', omitted)}, top-p {attempt.top_p:g}",
        ),
        ("Seed", f"{attempt.seed}{_omitted('seed', omitted)}"),
        ("Tokens", _tokens(attempt)),
        ("Finish reason", attempt.finish_reason or "none"),
        *([] if attempt.server is None else [("Server", attempt.server)]),
        *(
            (name, _time(time))
            for name, time in (
                ("Queued", attempt.queued_at),
                ("Started", attempt.started_at),
                ("First token", attempt.first_token_at),
                ("Ended", attempt.finished_at),
            )
        ),
    ]
    return Evidence(
        index=index,
        title=f"{title}{number}{run}",
        attempt=attempt,
        outcome=timeline.outcome(attempt),
        prompt=None if f"/attempts/{index}/prompt" in erased else attempt.prompt,
        output=None if view.is_erased(job, attempt) else attempt.output or "",
        facts=facts,
    )


def _omitted(name: str, omitted: list[str]) -> str:
    """Say of a parameter that the engine's server does not take it."""
    return " (not applied: the server refuses it)" if name in omitted else ""


def _tokens(attempt: Attempt) -> str:
    def number(value: int | None) -> str:
        return "unknown" if value is None else str(value)

    return (
        f"prompt {number(attempt.prompt_tokens)}, output {number(attempt.output_tokens)} "
        f"of at most {attempt.max_output_tokens}"
    )


def _time(time: Any) -> str:
    return rfc3339(time) or "never"


def about(worker: Worker) -> list[tuple[str, str]]:
    """Return what a worker ran: its model, its software and its device."""
    return [
        ("model", f"sha256:{worker.model}"),
        *_leaves(worker.runtime),
    ]


def _leaves(tree: dict[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    """Yield the values of a tree of dictionaries as texts, each with its path."""
    for name, value in tree.items():
        label = f"{path} {name}".strip()
        if isinstance(value, dict):
            yield from _leaves(value, label)
        else:
            values = value if isinstance(value, list) else [value]
            yield label, ", ".join(map(_word, values))


def _word(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)
