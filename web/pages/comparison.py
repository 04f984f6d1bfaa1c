"""Two jobs stage by stage: what made their texts, and how the texts differ."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest

from markupsafe import Markup

from jobs.models import Attempt, Job
from web.pages import evidence, texts, view
from web.pages.filters import strings
from web.pages.options import Options


@dataclass(frozen=True)
class Row:
    """A stage of both jobs."""

    title: str
    role: str
    #: Whether the prompts, and the texts, are the same; None where a job has no such text, or it was erased.
    same_prompt: bool | None
    same_text: bool | None
    #: The texts with their differences marked; None where there is none.
    left: Markup | None
    right: Markup | None


@dataclass(frozen=True)
class Comparison:
    """What two jobs have in common, and what not."""

    rows: list[Row]
    #: What differs of what made the texts: the name, and both values.
    differences: list[tuple[str, str, str]]


def compare(left: Job, right: Job, options: Options) -> Comparison:
    """Compare two jobs, with their attempts and workers."""
    pairs = zip_longest(left.finished, right.finished)
    return Comparison(
        rows=[_row(left, right, before, after, options) for before, after in pairs],
        differences=list(_differences(left, right)),
    )


def _row(
    left: Job, right: Job, before: Attempt | None, after: Attempt | None, options: Options
) -> Row:
    old, new = _output(left, before), _output(right, after)
    same_prompt = None
    prompts = [
        attempt.prompt
        for job, attempt in ((left, before), (right, after))
        if attempt is not None and not job.has_lost_texts
    ]
    if len(prompts) == 2:
        same_prompt = prompts[0] == prompts[1]
    job, attempt = (left, before) if before is not None else (right, after)
    assert attempt is not None  # noqa: S101 (one of both is there)
    both = old is not None and new is not None
    return Row(
        title=view.title(job, attempt.role, attempt.round),
        role=attempt.role.value,
        same_prompt=same_prompt,
        same_text=old == new if both else None,
        left=None if old is None else texts.beside(None, old, new, options),
        right=None if new is None else texts.beside(old, new, None, options),
    )


def _output(job: Job, attempt: Attempt | None) -> str | None:
    """Return the text of an attempt; None if there is none, or it was erased."""
    if attempt is None or view.is_erased(job, attempt):
        return None
    return attempt.output or ""


def _differences(left: Job, right: Job) -> Iterator[tuple[str, str, str]]:
    """Yield what differs of what made the texts of two jobs."""
    old, new = _circumstances(left), _circumstances(right)
    for name in dict.fromkeys([*old, *new]):
        values = old.get(name, ""), new.get(name, "")
        if values[0] != values[1]:
            yield name, *values


def _circumstances(job: Job) -> dict[str, str]:
    """Return what made a job's texts: the request, and what the worker of its first stage ran."""
    erased = job.erased or {}
    facts = {
        "question": "erased" if "/question" in erased else job.question,
        "system prompt": "erased" if "/system" in erased else job.system,
        "rounds": str(job.rounds),
        "temperature": f"{job.temperature:g}",
        "top-k": str(job.top_k),
        "top-p": f"{job.top_p:g}",
        "tokens per stage, at most": str(job.max_output_tokens),
        "seed": str(job.seed),
        "stop strings": "erased" if "/stop" in erased else strings(job.stop),
    }
    if job.finished:
        facts |= dict(evidence.about(job.finished[0].worker))
    return facts
