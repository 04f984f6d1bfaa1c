"""Checks that a history can be stored as a job: its types are the API's, and its stages the pipeline's.

A log proves that a history is the one that was recorded, and not that the program wrote it. What a database would store as
another value, or what a page, the search index or the statistics could not read, must not get in: one such job
would stop the duties for all others.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import ConfigDict, Field, ValidationError

from jobs import pipeline
from jobs.enums import AttemptStatus
from jobs.protocol import schemas
from jobs.protocol.schemas.base import Time
from jobs.protocol.schemas.history import Attempt, ReplayOfJob, Restart, Worker
from jobs.protocol.schemas.reviews import Review
from jobs.tlog.exported import HistoryError

_Rating = Literal[-1, 0, 1]


class _Worker(Worker):
    engine: str = ""  # Those of earlier versions lack it.


class _Attempt(Attempt):
    number: int = Field(ge=1)
    queued_at: Time
    worker: _Worker


class _Restart(Restart):
    model_before: str


class _Review(Review):
    critique: _Rating | None
    regeneration: _Rating | None


class _History(schemas.History):
    """A line of an export."""

    # What an export adds is checked elsewhere.
    model_config = ConfigDict(extra="ignore", strict=True)

    id: str = Field(pattern=r"^resp_[0-9a-z]{1,32}$")
    replay_of: str | None
    replay: None = None
    replays: list[ReplayOfJob] = Field(default=[])
    rounds: int = Field(ge=1, le=pipeline.MAX_ROUNDS)
    priority: int = Field(ge=0, le=pipeline.MAX_PRIORITY)
    run: int = Field(ge=1)
    finished_at: Time
    rating: _Rating | None
    restarts: list[_Restart]  # type: ignore[assignment]  # a list of its kind
    attempts: list[_Attempt]  # type: ignore[assignment]  # (the same)
    reviews: list[_Review]  # type: ignore[assignment]  # (the same)


def _pointer(value: Any, location: tuple[int | str, ...]) -> str:
    """Return where an error is in a history, without the names that unions have in pydantic's locations."""
    pointer = ""
    for part in location:
        is_member = isinstance(value, Mapping) and part in value
        if not is_member and not (isinstance(value, list) and isinstance(part, int)):
            break
        value = value[part]
        pointer += f"/{part}"
    return pointer


def check(exported: Mapping[str, Any]) -> None:
    """Check that the job of a history can be stored.

    Raises:
        HistoryError: it cannot.
    """
    try:
        # As JSON: as Python's values, names of statuses would be no statuses.
        history = _History.model_validate_json(json.dumps(exported), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        pointer = _pointer(exported, first["loc"])
        raise HistoryError(f"`{pointer}` has a wrong type or value: {first['msg']}") from error
    stages = pipeline.stages(history.rounds)
    finished: set[tuple[int, int]] = set()
    for number, attempt in enumerate(history.attempts):
        stage = stages[attempt.position] if 0 <= attempt.position < len(stages) else None
        if stage is None or (stage.role, stage.round) != (attempt.role, attempt.round):
            raise HistoryError(f"`/attempts/{number}` is of a stage that the job does not have")
        if not 1 <= attempt.run <= history.run:
            raise HistoryError(f"`/attempts/{number}` is of a run that the job does not have")
        place = attempt.run, attempt.position
        if attempt.status is AttemptStatus.FINISHED and place in finished:
            raise HistoryError(f"`/attempts/{number}` finished a stage that was finished before")
        if attempt.status is AttemptStatus.FINISHED:
            finished.add(place)
