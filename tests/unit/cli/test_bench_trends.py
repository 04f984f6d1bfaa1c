"""Trends: noise is told from growth."""

from __future__ import annotations

import random

import pytest

from cli.bench.trends import HOUR, quantile, trend

#: Ten minutes, a value every two seconds.
TIMES = [2.0 * i for i in range(300)]
ALLOWED = 1.0


def wandering(seed: int, growth: float = 0.0) -> list[tuple[float, float]]:
    """Return noise whose neighbours depend on each other, as memory's do, on a line that grows by so much in all."""
    rng, value = random.Random(seed), 0.0
    series = []
    for at in TIMES:
        value = 0.9 * value + rng.gauss(0, 0.2)
        series.append((at, 100 + value + growth * at / TIMES[-1]))
    return series


def test_noise_does_not_grow() -> None:
    assert not [seed for seed in range(200) if trend(wandering(seed)).grows(ALLOWED)]


def test_a_slow_leak_in_noise_is_found() -> None:
    missed = [seed for seed in range(200) if not trend(wandering(seed, 2.0)).grows(ALLOWED)]
    assert len(missed) <= 10


def test_the_interval_has_the_slope() -> None:
    """Of 200 series that grow by 2 in ten minutes, in most that depend on each other as here."""
    slope = 2.0 * HOUR / TIMES[-1]
    hits = [t.low <= slope <= t.high for t in (trend(wandering(seed, 2.0)) for seed in range(200))]
    assert sum(hits) >= 170


def test_a_line_has_its_slope() -> None:
    line = trend([(at, 5 + at / HOUR) for at in TIMES])
    assert line.slope == pytest.approx(1, rel=0.01)
    assert line.low == pytest.approx(line.high, rel=0.01)
    assert line.rise == pytest.approx(TIMES[-1] / HOUR, rel=0.01)


def test_the_statistic_of_a_block_is_chosen() -> None:
    """The slow ones become slower, and the median does not see it."""
    series = [(at, 10 + at / 60 if i % 10 == 0 else 1.0) for i, at in enumerate(TIMES)]
    assert not trend(series, lambda block: quantile(block, 0.5)).grows(0.0)
    assert trend(series, lambda block: quantile(block, 0.99)).grows(1.0)


def test_too_few_values_are_refused() -> None:
    with pytest.raises(ValueError, match="too few"):
        trend([(0.0, 1.0), (1.0, 1.0)])
