"""The form of a question: from its fields to the parameters of a request, and from a job back to its fields."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from jobs.models import Job
from jobs.protocol.errors import invalid_value
from web.pages.filters import strings

#: The fields that are numbers: name, label, placeholder and keyboard. An empty one asks for the default.
NUMBERS = (
    ("temperature", "Temperature", "0.75; 0 is greedy", "decimal"),
    ("top_k", "Top-k", "50; 0 for all", "numeric"),
    ("top_p", "Top-p", "1", "decimal"),
    ("max_output_tokens", "Tokens per stage", "1024", "numeric"),
    ("seed", "Seed", "random", "numeric"),
    ("rounds", "Rounds", "1 to 5", "numeric"),
    ("priority", "Priority", "0 to 9", "numeric"),
)


def parameters(form: Mapping[str, str]) -> dict[str, object]:
    """Return the parameters that a form asks for. What is no number stays text, and is refused by its name.

    Raises:
        InvalidRequestError: the stop strings are not written as they must be.
    """
    found: dict[str, object] = {"input": form.get("question", "")}
    if form.get("instructions", "").strip():
        found["instructions"] = form["instructions"]
    for name, *_ in NUMBERS:
        if text := form.get(name, "").strip():
            found[name] = _number(text)
    if text := form.get("stop", "").strip():
        found["stop"] = _strings(text)
    return found


def of_job(job: Job) -> dict[str, str]:
    """Return the fields of the form that asks a job's question again. Erased texts are empty."""
    erased = job.erased or {}
    return {
        "question": "" if "/question" in erased else job.question,
        "instructions": "" if "/system" in erased else job.system,
        **{name: _text(getattr(job, name)) for name, *_ in NUMBERS},
        "stop": "" if "/stop" in erased or not job.stop else strings(job.stop),
    }


def _text(number: float) -> str:
    return f"{number:g}" if isinstance(number, float) else str(number)


def _number(text: str) -> object:
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


def _strings(text: str) -> list[str]:
    """Return the strings that a text has in quotation marks, as `strings` writes them.

    Without the marks, nobody would see spaces at an end, nor know whether a backslash is one.
    """
    found: list[Any]
    try:
        found = json.loads(f"[{text}]", strict=False)
    except (ValueError, RecursionError):
        found = [None]
    if not all(isinstance(each, str) for each in found):
        raise invalid_value(
            "stop",
            "Write each of the stop strings in straight quotation marks, with a comma between two: "
            r'"\n\n", "Question:". A line break is \n, and a backslash \\.',
        )
    return found
