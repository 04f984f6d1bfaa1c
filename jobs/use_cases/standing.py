"""Where a job stands that has not ended: its place in the queue, and who could take it."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

from jobs.database import Database
from jobs.models import Job, Status
from jobs.statements import jobs, workers

#: How many of the jobs that ended last say how fast the queue moves, and how old they may be.
SAMPLE = 20
MAX_AGE = dt.timedelta(minutes=10)
#: Fewer say nothing.
MIN_SAMPLE = 3


@dataclass(frozen=True)
class Standing:
    """What a job waits for."""

    #: 1 for the next one; None for a job that has begun.
    place: int | None
    #: All queued jobs, this one included.
    queued: int
    #: Workers that are ready, and have the job's model if it has begun.
    ready: int
    #: When any worker was last alive; None if there never was one.
    seen_at: dt.datetime | None
    #: The expected time until it starts; None if it is not known.
    wait: dt.timedelta | None


def find(database: Database, job: Job, now: dt.datetime) -> Standing:
    """Return where a job stands. It costs a few counts of indexes, the longest one of the queued jobs.

    Args:
        database: of the job.
        job: one that has not ended.
        now: the time.
    """
    with database.read() as connection:
        ready = workers.count_ready(connection, job.model)
        seen_at = None if ready else workers.last_seen(connection)
        if job.status is not Status.QUEUED:
            return Standing(None, 0, ready, seen_at, None)
        ahead, queued = jobs.count_ahead(connection, job.priority, job.published_at)
        ends = jobs.last_ends(connection, SAMPLE) if ready else []
    recent = [end for end in ends if now - end < MAX_AGE]
    wait = None
    if len(recent) >= MIN_SAMPLE:
        wait = (now - recent[-1]) / len(recent) * (ahead + 1)
    return Standing(ahead + 1, max(queued, ahead + 1), ready, seen_at, wait)
