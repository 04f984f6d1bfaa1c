"""Shares with confidence intervals, and the comparison of two on the same questions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import binomtest

from jobs.statistics.intervals import Share, Z

__all__ = ["Paired", "Share", "compare", "share"]


@dataclass(frozen=True)
class Paired:
    """How much more often ``after`` is right than ``before``, on the same questions."""

    #: Wrong before, right after.
    mended: int
    #: Right before, wrong after.
    spoilt: int
    total: int

    @property
    def difference(self) -> float:
        """Between -1 and 1."""
        return (self.mended - self.spoilt) / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% interval of D. G. Bonett and R. M. Price, J. Educ. Behav. Stat. 37 (2012)."""
        up, down = ((count + 1) / (self.total + 2) for count in (self.mended, self.spoilt))
        error = math.sqrt((up + down - (up - down) ** 2) / (self.total + 2))
        margin = Z * error
        return max(-1.0, up - down - margin), min(1.0, up - down + margin)

    @property
    def p_value(self) -> float:
        """McNemar's exact test, two-sided: are mended and spoilt equally likely?"""
        changed = self.mended + self.spoilt
        return float(binomtest(self.mended, changed).pvalue) if changed else 1.0

    def describe(self) -> dict[str, float | int]:
        low, high = self.interval
        return {
            "mended": self.mended,
            "spoilt": self.spoilt,
            "total": self.total,
            "difference": self.difference,
            "low": low,
            "high": high,
            "p_value": self.p_value,
        }


def share(flags: Sequence[bool]) -> Share:
    """Count the flags that are true."""
    return Share(sum(flags), len(flags))


def compare(before: Sequence[bool], after: Sequence[bool]) -> Paired:
    """Compare two lists of graded answers to the same questions, in the same order."""
    pairs = list(zip(before, after, strict=True))
    return Paired(
        mended=sum(b < a for b, a in pairs), spoilt=sum(b > a for b, a in pairs), total=len(pairs)
    )
