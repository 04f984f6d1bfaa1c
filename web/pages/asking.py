"""The form of a question: from its fields to the parameters of a request, and from a job back to its fields."""

from __future__ import annotations

from collections.abc import Mapping

from jobs.models import Job

#: The fields that are numbers. An empty one asks for the default.
NUMBERS = ("temperature", "top_k", "top_p", "max_output_tokens", "seed", "rounds", "priority")


def parameters(form: Mapping[str, str]) -> dict[str, object]:
    """Return the parameters that a form asks for. What is no number stays text, and is refused by its name."""
    found: dict[str, object] = {"input": form.get("question", "")}
    if form.get("instructions", "").strip():
        found["instructions"] = form["instructions"]
    for name in NUMBERS:
        if text := form.get(name, "").strip():
            found[name] = _number(text)
    return found


def of_job(job: Job) -> dict[str, str]:
    """Return the fields of the form that asks a job's question again. Erased texts are empty."""
    erased = job.erased or {}
    return {
        "question": "" if "/question" in erased else job.question,
        "instructions": "" if "/system" in erased else job.system,
        "temperature": f"{job.temperature:g}",
        "top_p": f"{job.top_p:g}",
        **{
            name: str(getattr(job, name))
            for name in ("top_k", "max_output_tokens", "seed", "rounds", "priority")
        },
    }


def _number(text: str) -> object:
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text
