"""Noticing that a clock was set."""

from __future__ import annotations

import datetime as dt
from typing import Any, cast

import pytest

from jobs.clock_watch import ClockWatch


def test_a_clock_that_was_set_is_told_from_time_that_passes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    passed, wrong_by, delay = 0.0, 0.0, 0.0

    def read_clock(_: object) -> dt.datetime:
        nonlocal passed
        read = dt.datetime(2025, 6, 1, tzinfo=dt.UTC) + dt.timedelta(seconds=passed + wrong_by)
        passed += delay
        return read

    monkeypatch.setattr("jobs.clock_watch.clock.now", read_clock)
    monkeypatch.setattr("jobs.clock_watch.time.monotonic", lambda: passed)
    watch = ClockWatch(cast("Any", None))
    assert watch.look() == 0
    passed += 3600
    wrong_by += 2
    assert watch.look() == 0, "as NTP does it"
    wrong_by -= 3600
    assert watch.look() == -3600
    assert watch.look() == 0
    passed, wrong_by = passed + 5, wrong_by + 30
    assert watch.look() == 30
    delay = 20
    assert watch.look() == 0, "the reply was late"
    delay = 0
    assert watch.look() == 0
