"""Tallies, periods and intervals."""

from __future__ import annotations

import datetime as dt
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t, ttest_ind

from jobs.statistics.counted import Counted, Stage
from jobs.statistics.intervals import (
    Mean,
    Share,
    difference_of_means,
    difference_of_shares,
    t_quantile,
)
from jobs.statistics.periods import Level, cover, starts
from jobs.statistics.tally import Measure, Tally

HOUR = dt.timedelta(hours=1)
hours = st.integers(0, 24 * 900).map(lambda n: dt.datetime(2024, 1, 1, tzinfo=dt.UTC) + n * HOUR)


def measured(values: list[float], *, per: int = 1_000_000) -> Measure:
    measure = Measure()
    for value in values:
        measure.add(round(value * per))
    return measure


def mean_of(measure: Measure) -> Mean:
    assert measure.mean is not None
    return Mean(measure.count, measure.mean, measure.variance)


@given(hours, hours)
def test_a_range_is_covered_once_by_few_periods(since: dt.datetime, until: dt.datetime) -> None:
    runs = cover(since, until)
    covered = [
        hour
        for run in runs
        for start in starts(run.level, run.first, run.end)
        for hour in starts(Level.HOUR, start, min(run.end, next_start(run.level, start)))
    ]
    assert sorted(covered) == list(starts(Level.HOUR, since, until))
    lengths = [len(list(starts(*run))) for run in runs]
    assert sum(lengths) <= 23 + 23 + 30 + 30 + 31


def next_start(level: Level, start: dt.datetime) -> dt.datetime:
    return next(iter([*starts(level, start, start + dt.timedelta(days=40))][1:]))


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=50), st.sampled_from([50, 90, 99]))
def test_percentiles_are_right_within_a_bucket(values: list[int], percent: int) -> None:
    measure = measured([float(value) for value in values], per=1)
    found = measure.percentiles([percent / 100])[0]
    exact = sorted(values)[max(0, math.ceil(percent / 100 * len(values)) - 1)]
    assert found is not None
    assert exact / 1.1 - 1 <= found <= exact * 1.1 + 1


@given(st.lists(st.integers(0, 10**9), max_size=30), st.lists(st.integers(0, 10**9), max_size=30))
def test_what_is_added_and_taken_off_leaves_nothing(kept: list[int], gone: list[int]) -> None:
    def tally(values: list[int], sign: int = 1) -> Tally:
        made = Tally()
        for value in values:
            stage = Stage("actor", value, value // 2, 10, value % 90)
            job = Counted(
                "completed", 3, 0, value, value, value % 1_000_001, 1, None, 1, 0, (stage,)
            )
            assert Counted.load(job.dump()) == job
            made.add(job, sign)
        return made

    both = tally(kept + gone)
    both.merge(tally(gone, -1))
    assert both.dump() == tally(kept).dump() == Tally.load(tally(kept).dump()).dump()


def test_the_rate_is_of_the_tokens_after_the_first_one() -> None:
    assert Stage("actor", 3_000_000, 1_000_000, 5, 21).rate == 10_000
    assert Stage("actor", 3_000_000, 1_000_000, 5, 1).rate is None
    assert Stage("actor", 3_000_000, None, 5, 21).rate is None
    assert Stage("actor", 1_000_000, 1_000_000, 5, 21).rate is None


def test_students_quantile_is_right_within_a_thousandth() -> None:
    for freedom in (4, 4.5, 6, 10, 50, 1000):
        assert t_quantile(freedom) == pytest.approx(t.ppf(0.975, freedom), rel=1e-3)


def test_the_difference_of_means_is_welchs() -> None:
    rng = random.Random(3)
    first = [rng.gauss(10, 2) for _ in range(12)]
    second = [rng.gauss(11, 4) for _ in range(30)]
    scale = 1_000_000
    found = difference_of_means(mean_of(measured(first)), mean_of(measured(second)))
    low, high = ttest_ind(second, first, equal_var=False).confidence_interval(0.95)
    assert [bound / scale for bound in found[1:]] == pytest.approx([low, high], rel=1e-3)
    few = mean_of(measured([1.0, 2.0, 3.0, 4.0]))
    assert all(math.isnan(bound) for bound in (*few.interval, *difference_of_means(few, few)[1:]))
    same = mean_of(measured([2.0] * 5))
    assert same.interval == (same.value, same.value)
    assert difference_of_means(same, same) == (0, 0, 0)


def test_the_difference_of_shares_is_newcombes() -> None:
    """Newcombe, Statistics in Medicine 17 (1998), p. 876, method 10: 56/70 - 48/80, and 9/10 - 3/10."""
    for (a, m), (b, n), bounds in (
        ((48, 80), (56, 70), (0.0524, 0.3339)),
        ((3, 10), (9, 10), (0.1705, 0.8090)),
    ):
        difference, low, high = difference_of_shares(Share(a, m), Share(b, n))
        assert difference == pytest.approx(b / n - a / m)
        assert (low, high) == pytest.approx(bounds, abs=1e-4)
