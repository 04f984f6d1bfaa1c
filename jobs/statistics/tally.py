"""Tallies: sums over jobs that can be merged and taken apart again.

A measure has the number of its values, their sum, the sum of their squares, and a histogram with fixed buckets. So
the tally of two hours is the sum of theirs, and means, intervals and percentiles come from it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from jobs.statistics.counted import MILLION, Counted

#: Buckets for each doubling of a value: bounds are 9% apart, and so percentiles are right within that.
PER_OCTAVE = 8
#: The bucket of 0.
ZERO = -1
#: Buckets of a share, which are equally wide.
SHARES = 50
#: The measures that are shares.
_SHARE_NAMES = frozenset({"changed"})


@dataclass
class Measure:
    """Values of one kind, in the integers of `Counted`."""

    is_share: bool = False
    count: int = 0
    total: int = 0
    squares: int = 0
    #: The numbers of values by their buckets, which are named as in JSON: reading and merging is all that most do.
    buckets: dict[str, int] = field(default_factory=dict)

    def add(self, value: int, sign: int = 1) -> None:
        """Add a value, or with the sign -1 take it off."""
        self.count += sign
        self.total += sign * value
        self.squares += sign * value * value
        bucket = self._bucket(value)
        self.buckets[bucket] = self.buckets.get(bucket, 0) + sign

    def merge(self, other: Measure, sign: int = 1) -> None:
        """Add the values of another one, or with the sign -1 take them off."""
        self.count += sign * other.count
        self.total += sign * other.total
        self.squares += sign * other.squares
        if not self.buckets and sign == 1:
            self.buckets = other.buckets.copy()
            return
        known = self.buckets.get
        for bucket, count in other.buckets.items():
            self.buckets[bucket] = known(bucket, 0) + sign * count

    @property
    def mean(self) -> float | None:
        return self.total / self.count if self.count else None

    @property
    def variance(self) -> float | None:
        """The unbiased variance; None of fewer than two values."""
        if self.count < 2:
            return None
        # Integers: nothing cancels.
        return (self.count * self.squares - self.total**2) / (self.count * (self.count - 1))

    def percentiles(self, shares: Sequence[float]) -> list[float | None]:
        """Return the values below which shares of the values are, by interpolating in their buckets.

        Args:
            shares: in ascending order.
        """
        if not self.count:
            return [None] * len(shares)
        if self.count * self.squares == self.total**2:  # All are the same.
            return [self.total / self.count] * len(shares)
        ends: list[float | None] = []
        buckets = sorted([(int(b), c) for b, c in self.buckets.items() if c > 0])
        left, below = deque(shares), 0
        for bucket, count in buckets:
            while left and below + count >= (wanted := left[0] * self.count):
                ends.append(self._within(bucket, (wanted - below) / count))
                left.popleft()
            below += count
        return ends + [self._within(buckets[-1][0], 1.0)] * len(left)

    def _bucket(self, value: int) -> str:
        if self.is_share:
            return str(min(value * SHARES // MILLION, SHARES - 1))
        return str(ZERO if value <= 0 else math.floor(math.log2(value) * PER_OCTAVE))

    def _within(self, bucket: int, part: float) -> float:
        """Return the value at a part of a bucket."""
        if self.is_share:
            return (bucket + part) * MILLION / SHARES
        return 0.0 if bucket == ZERO else 2 ** ((bucket + part) / PER_OCTAVE)


@dataclass
class Tally:
    """Sums over jobs."""

    counts: dict[str, int] = field(default_factory=dict)
    measures: dict[str, Measure] = field(default_factory=dict)

    def add(self, counted: Counted, sign: int = 1) -> None:
        """Add what a job counts for, or with the sign -1 take it off."""
        self._count("jobs", sign)
        self._count("attempts", sign * counted.attempts)
        self._count("lost", sign * counted.lost)
        self._count("reviews", sign * counted.reviews)
        for name in counted.counts():
            self._count(name, sign)
        for name, value in counted.values():
            self.measure(name).add(value, sign)

    def merge(self, other: Tally, sign: int = 1) -> None:
        """Add another one, or with the sign -1 take it off."""
        for name, count in other.counts.items():
            self._count(name, sign * count)
        for name, measure in other.measures.items():
            self.measure(name).merge(measure, sign)

    @property
    def jobs(self) -> int:
        """The number of jobs."""
        return self.counts.get("jobs", 0)

    def measure(self, name: str) -> Measure:
        """Return a measure, which is empty if no job has it."""
        measure = self.measures.get(name)
        if measure is None:
            measure = self.measures[name] = Measure(name in _SHARE_NAMES)
        return measure

    def dump(self) -> dict[str, Any]:
        """Return it as JSON, without zeros."""
        measures = {}
        for name, measure in self.measures.items():
            buckets = {bucket: count for bucket, count in measure.buckets.items() if count}
            if measure.count or buckets:
                measures[name] = [measure.count, measure.total, measure.squares, buckets]
        counts = {name: count for name, count in self.counts.items() if count}
        return {"counts": counts, "measures": measures}

    @classmethod
    def load(cls, dumped: dict[str, Any]) -> Tally:
        """Return what `dump` made JSON of."""
        tally = cls(dict(dumped.get("counts", {})))
        for name, (count, total, squares, buckets) in dumped.get("measures", {}).items():
            tally.measures[name] = Measure(name in _SHARE_NAMES, count, total, squares, buckets)
        return tally

    def _count(self, name: str, number: int) -> None:
        self.counts[name] = self.counts.get(name, 0) + number
