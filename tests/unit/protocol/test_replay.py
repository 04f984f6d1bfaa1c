"""What differs between a replay and the job that it replays."""

from __future__ import annotations

import pytest

from jobs.protocol.replay import report
from tests.unit.protocol.rows import completed_job


@pytest.mark.parametrize(("before", "after"), [(None, ""), ("", None)])
def test_an_empty_text_differs_from_none(before: str | None, after: str | None) -> None:
    original, replay = completed_job(), completed_job(replay_of="resp_0123")
    original.attempts[1].output, replay.attempts[1].output = before, after
    compared = report(original, replay)
    assert compared["identical"] is False
    assert compared["difference"] == {
        "position": 1,
        "role": "critic",
        "round": 1,
        "field": "output",
        "at": 0,
        "original": before,
        "replay": after,
    }
