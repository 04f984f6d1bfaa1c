"""Shares and means with 95% confidence intervals, and differences of two that are independent of each other."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

CONFIDENCE = 0.95
#: The quantile of the normal distribution.
Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
#: A mean of fewer values has no interval.
MIN_VALUES = 5


@dataclass(frozen=True)
class Share:
    """A number of hits among a total, with Wilson's interval (E. B. Wilson, JASA 22, 1927)."""

    hits: int
    total: int

    @property
    def value(self) -> float:
        """Between 0 and 1; NaN if the total is 0."""
        return self.hits / self.total if self.total else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        if not self.total:
            return math.nan, math.nan
        n, p = self.total, self.value
        center = (p + Z**2 / (2 * n)) / (1 + Z**2 / n)
        reach = Z * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2)) / (1 + Z**2 / n)
        low = 0.0 if self.hits == 0 else max(0.0, center - reach)
        high = 1.0 if self.hits == n else min(1.0, center + reach)
        return low, high

    def describe(self) -> dict[str, float | int]:
        low, high = self.interval
        return {
            "hits": self.hits,
            "total": self.total,
            "share": self.value,
            "low": low,
            "high": high,
        }


@dataclass(frozen=True)
class Mean:
    """A mean, with Student's interval."""

    count: int
    value: float
    #: Unbiased; None of fewer than two values.
    variance: float | None

    @property
    def interval(self) -> tuple[float, float]:
        """NaN of fewer than `MIN_VALUES` values."""
        if self.variance is None or self.count < MIN_VALUES:
            return math.nan, math.nan
        reach = t_quantile(self.count - 1) * math.sqrt(self.variance / self.count)
        return self.value - reach, self.value + reach


def difference_of_shares(first: Share, second: Share) -> tuple[float, float, float]:
    """Return how much larger the second share is, and the interval.

    It is method 10 of R. G. Newcombe, Statistics in Medicine 17 (1998), pp. 873-890: from both Wilson intervals.
    """
    difference = second.value - first.value
    (low_1, high_1), (low_2, high_2) = first.interval, second.interval
    down = math.hypot(second.value - low_2, high_1 - first.value)
    up = math.hypot(high_2 - second.value, first.value - low_1)
    return difference, difference - down, difference + up


def difference_of_means(first: Mean, second: Mean) -> tuple[float, float, float]:
    """Return how much larger the second mean is, and Welch's interval (B. L. Welch, Biometrika 34, 1947).

    The interval is NaN if one has fewer than `MIN_VALUES` values.
    """
    difference = second.value - first.value
    if first.variance is None or second.variance is None:
        return difference, math.nan, math.nan
    if min(first.count, second.count) < MIN_VALUES:
        return difference, math.nan, math.nan
    a, b = first.variance / first.count, second.variance / second.count
    if a + b == 0:
        return difference, difference, difference
    freedom = (a + b) ** 2 / (a**2 / (first.count - 1) + b**2 / (second.count - 1))
    reach = t_quantile(freedom) * math.sqrt(a + b)
    return difference, difference - reach, difference + reach


def t_quantile(freedom: float) -> float:
    """Return the quantile of Student's distribution for `CONFIDENCE`, for 4 degrees of freedom or more.

    It is formula 26.7.5 of Abramowitz and Stegun, Handbook of Mathematical Functions: right within 0.1%.
    """
    z, n = Z, freedom
    return (
        z
        + (z**3 + z) / (4 * n)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * n**4)
    )
