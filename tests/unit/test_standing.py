"""What a job's page and `helixq ask` say of a place in the queue, also where counts end."""

from __future__ import annotations

import datetime as dt

import pytest

from cli import asking
from jobs.models import Job, Status
from jobs.use_cases.standing import CAP, Standing
from web.pages import standing


@pytest.mark.parametrize(
    ("place", "queued", "said"),
    [
        (7, 42, "7th of 42"),
        (7, CAP, "7th of 1,000 or more"),
        (CAP, CAP, "1,000th or later of 1,000 or more"),
    ],
)
def test_places_beyond_the_count_are_said_to_be(place: int, queued: int, said: str) -> None:
    job = Job(status=Status.QUEUED, attempts=[])
    stands = Standing(place, queued, 2, None, None)
    now = dt.datetime.now(dt.UTC)
    assert standing.describe(job, stands, now) == f"{said}; 2 workers ready."
    told = {"place": place, "queued": queued}
    assert asking._queued(told) == f"queued, {said}"
