"""What differs between a replay and the job that it replays."""

from __future__ import annotations

import pytest

from jobs.models import Status
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


@pytest.mark.parametrize("status", [Status.IN_PROGRESS, Status.CANCELLED, Status.FAILED])
@pytest.mark.parametrize("text", ["One two.", "Another."])
def test_what_a_replay_did_not_run_is_no_difference(status: Status, text: str) -> None:
    original, replay = completed_job(), completed_job(replay_of="resp_0123")
    replay.status = status
    del replay.attempts[1:]
    original.attempts[0].output, replay.attempts[0].output = "One two.", text
    compared = report(original, replay)
    same = text == "One two."
    assert compared["identical"] is (None if same else False)
    assert (compared["difference"] is None) == same
    del replay.attempts[:]
    compared = report(original, replay)
    assert (compared["identical"], compared["difference"]) == (None, None)
