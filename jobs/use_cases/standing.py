"""The place in the queue of a job that has not ended, and the workers that could take it."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa

from jobs.database import Database
from jobs.models import Job, Status
from jobs.pipeline import DEFAULT_PRIORITY
from jobs.statements import in_queue, pauses, workers
from jobs.statements.in_queue import CAP
from jobs.statements.pauses import LastPause

__all__ = ["CAP", "Outlook", "Standing", "find_outlook", "find_standing"]

#: How many of the jobs that ended last say how fast the queue moves, and how old they may be.
SAMPLE = 20
MAX_AGE = dt.timedelta(minutes=10)
#: The minimum number of them: fewer say nothing.
MIN_SAMPLE = 3


@dataclass(frozen=True)
class Standing:
    """What a job waits for."""

    #: 1 for the next one; None for a job that has begun. `CAP` means that or later.
    place: int | None
    #: All queued jobs, this one included. `CAP` means that or more.
    queued: int
    #: Workers that are ready, and have the job's model if it has begun.
    ready: int
    #: When any worker was last alive; None if there never was one.
    seen_at: dt.datetime | None
    #: The expected time until it starts; None if it is not known, as for all from the place `CAP` on.
    wait: dt.timedelta | None
    #: If the queue is paused. Then there is neither place nor wait: nobody knows when it is resumed.
    pause: LastPause | None = None


@dataclass(frozen=True)
class Outlook:
    """What a question would wait for if it were asked now."""

    standing: Standing
    #: The name of the base and the tokens of the context of each model that is served.
    serving: list[tuple[str, int]]


def find_standing(database: Database, job: Job, now: dt.datetime) -> Standing:
    """Return a job's place in the queue, and what it waits for. Counts end at `CAP`.

    Args:
        database: of the job.
        job: one that has not ended.
        now: the time.
    """
    with database.read() as connection:
        if job.status is not Status.QUEUED:
            return _standing(connection, job.model, None, now)
        found = _standing(connection, job.model, (job.priority, job.published_at), now)
    return replace(found, queued=max(found.queued, found.place or 1))


def find_outlook(database: Database, now: dt.datetime) -> Outlook:
    """Return what a question would wait for if it were asked now, and what would answer it.

    Args:
        database: to ask in.
        now: the time.
    """
    with database.read() as connection:
        found = _standing(connection, None, (DEFAULT_PRIORITY, now), now)
        rows = workers.serving(connection)
    serving = [(_name(row.runtime), row.context) for row in rows]
    return Outlook(found, list(dict.fromkeys(serving)))


def _standing(
    connection: sa.Connection,
    model: str | None,
    waits: tuple[int, dt.datetime | None] | None,
    now: dt.datetime,
) -> Standing:
    """Return what a job waits for.

    Args:
        connection: in any transaction.
        model: of the workers that can take it; None for any.
        waits: its priority, and when its message was published, if it waits for its first stage.
        now: the time.
    """
    ready = workers.count_ready(connection, model)
    seen_at = None if ready else workers.last_seen(connection)
    last = pauses.last(connection)
    pause = None if last is None or last.resumed_at else last
    if waits is None:
        return Standing(None, 0, ready, seen_at, None, pause)
    ahead, queued = in_queue.count_ahead(connection, *waits)
    if pause is not None:
        return Standing(None, queued, ready, seen_at, None, pause)
    ends = in_queue.last_ends(connection, SAMPLE) if ready else []
    place = min(ahead + 1, CAP)
    return Standing(place, queued, ready, seen_at, _wait(ends, place, now, last))


def _name(runtime: dict[str, Any]) -> str:
    """Return the name of the base that a worker serves, or the server that has it and does not say."""
    named = runtime.get("base", {}).get("name") or next(iter(runtime.get("servers", {})), "")
    return str(named)


def _wait(
    ends: list[dt.datetime], place: int, now: dt.datetime, last: LastPause | None
) -> dt.timedelta | None:
    """Return how long a job waits at a place, by when the last ones ended since the last pause."""
    since = now - MAX_AGE
    if last is not None and last.resumed_at is not None:
        since = max(since, last.resumed_at)
    recent = [end for end in ends if end > since]
    if len(recent) < MIN_SAMPLE or place >= CAP:
        return None
    return (now - recent[-1]) / len(recent) * place
