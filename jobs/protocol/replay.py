"""The report of a replay: whether its texts are those of the job that it replays, and what else differs."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from typing import Any

from jobs.models import Attempt, Job
from jobs.times import rfc3339

#: Characters shown before and after the first difference of two texts.
BEFORE, AFTER = 30, 50
#: What of a stage is compared, in this order: a different prompt explains a different output.
COMPARED = ("prompt", "output", "finish_reason")


def report(original: Job | None, replay: Job) -> dict[str, Any]:
    """Compare the finished stages of two jobs.

    Args:
        original: the job that is replayed, with its attempts and their workers; None if it was deleted.
        replay: the job that replays it, likewise.

    Returns:
        ``of``: the original's id. ``identical``: whether every stage that the original finished has the
        same text; None as long as that is not known, if the replay ended before it was, or if texts were
        erased. ``difference``: the first one, or None. ``changed``: what of the model, the software and the
        device differs, by its path in the worker of an attempt.
    """
    result: dict[str, Any] = {
        "of": replay.replay_of,
        "identical": None,
        "difference": None,
        "changed": [],
    }
    if original is None or original.has_lost_texts or replay.has_lost_texts:
        return result
    # What one of them alone has finished cannot be compared: it ended early, or goes on.
    for before, after in zip(original.finished, replay.finished, strict=False):
        if result["difference"] is None:
            result["difference"] = _difference(before, after)
        if not result["changed"]:
            result["changed"] = _changed(before, after)
    if result["difference"] is not None:
        result["identical"] = False
    elif len(replay.finished) >= len(original.finished):
        result["identical"] = True
    return result


def replays(original: Job, found: list[Job]) -> list[dict[str, Any]]:
    """Return what a history says about the replays of its job."""
    return [
        {
            "id": replay.id,
            "created_at": rfc3339(replay.created_at),
            "status": replay.status.value,
            "identical": report(original, replay)["identical"],
        }
        for replay in found
    ]


def _difference(before: Attempt, after: Attempt) -> dict[str, Any] | None:
    for field in COMPARED:
        old, new = getattr(before, field), getattr(after, field)
        if old == new:
            continue
        pairs = enumerate(zip_longest(old or "", new or ""))
        # One may be missing and the other empty: then no character differs.
        at = next((i for i, (a, b) in pairs if a != b), 0)
        return {
            **_stage(before),
            "field": field,
            "at": at,
            "original": _cut(old, at),
            "replay": _cut(new, at),
        }
    return None


def _stage(attempt: Attempt) -> dict[str, Any]:
    return {
        "position": attempt.stage_index,
        "role": attempt.role.value,
        "round": attempt.round,
    }


def _cut(text: str | None, at: int) -> str | None:
    """Return the part of a text around a character."""
    return None if text is None else text[max(0, at - BEFORE) : at + AFTER]


def _changed(before: Attempt, after: Attempt) -> list[dict[str, Any]]:
    old, new = (dict(_leaves(attempt.worker.runtime)) for attempt in (before, after))
    return [
        {"field": path, "original": old.get(path), "replay": new.get(path)}
        for path in sorted(old.keys() | new.keys())
        if old.get(path) != new.get(path)
    ]


def _leaves(tree: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of a tree of dictionaries, each with its path."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value
