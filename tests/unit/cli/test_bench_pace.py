"""The machine's speed, and how the load of a soak follows it."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from cli.bench import pace
from cli.bench.clients import Clients
from cli.bench.pace import Pace


def test_speeds_are_relative_to_that_of_the_calibration(monkeypatch: pytest.MonkeyPatch) -> None:
    """Faked: the clock, and how long the computation takes."""
    clock, taken = itertools.count(0, 2), iter([9.0, 1.0, 1.0, 1.0, *[2.0] * 14, *[0.5] * 27])
    monkeypatch.setattr("cli.bench.pace.time.monotonic", lambda: next(clock))
    monkeypatch.setattr(pace, "probe", lambda: next(taken))
    measured = Pace()
    for _ in range(4):
        measured.sample()
    measured.calibrate()
    assert (measured.speed(), measured.by_thirds()) == (1, [1, 1, 1])
    for _ in range(14):
        measured.sample()
    assert measured.speed() == 0.5
    for _ in range(27):
        measured.sample()
    assert measured.speed() == 2, "only the last half minute counts"
    assert measured.by_thirds() == [0.5, 2, 2]


def test_a_slower_machine_takes_more_time_for_the_computation() -> None:
    assert pace.probe() > 0


def test_the_rate_can_change_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Faked: asking, and the clock, which only waiting moves on."""
    now, asked = [0.0], []

    async def sleep(seconds: float) -> None:
        now[0] += seconds

    async def ask(_: Clients, *, cancels: bool) -> None:
        assert cancels

    monkeypatch.setattr("cli.bench.clients.time.monotonic", lambda: now[0])
    monkeypatch.setattr("cli.bench.clients.asyncio.sleep", sleep)
    monkeypatch.setattr(Clients, "_ask", ask)

    def rate() -> float:
        asked.append(now[0])
        return 2.0 if now[0] < 4 else 1.0

    asyncio.run(Clients("http://127.0.0.1", iter([])).ask_evenly(rate, 8))
    assert asked == [0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4, 5, 6, 7]
