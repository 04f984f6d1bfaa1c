"""Whether something grows: a line through its values, with a confidence interval of the slope."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

#: Blocks of equal duration. Values near to each other in time depend on each other, and means of blocks hardly do:
#: without them the interval would be far too narrow.
BLOCKS = 12
#: The 97.5% quantile of Student's t distribution with `BLOCKS` - 2 degrees of freedom. A short series may leave blocks empty, and
#: then it is a little too small.
T = 2.228
HOUR = 3600.0

#: Values with their times in seconds.
Series = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Trend:
    """A least-squares line through the blocks of a series."""

    #: The mean.
    level: float
    #: Per hour: the slope, and its confidence interval of 95%.
    slope: float
    low: float
    high: float
    #: By how much the line rises in the time measured.
    rise: float

    def grows(self, allowance: float) -> bool:
        """Return whether the slope is more than noise, and the rise more than what is allowed."""
        return self.low > 0 and self.rise > allowance


def trend(
    series: Series, statistic: Callable[[Sequence[float]], float] = statistics.fmean
) -> Trend:
    """Return the trend of a series.

    Args:
        series: in the order of time.
        statistic: of the values of a block.

    Raises:
        ValueError: most of the `BLOCKS` have no values.
    """
    start, end = series[0][0], series[-1][0]
    width = (end - start) / BLOCKS
    blocks: list[list[float]] = [[] for _ in range(BLOCKS)]
    for time, value in series:
        blocks[min(int((time - start) / width) if width else 0, BLOCKS - 1)].append(value)
    points = [(number, statistic(block)) for number, block in enumerate(blocks) if block]
    if len(points) < BLOCKS / 2:
        raise ValueError("too few values for a trend")
    values = [value for _, value in points]
    slope, intercept = statistics.linear_regression(*zip(*points, strict=True))
    squares = sum((value - intercept - slope * number) ** 2 for number, value in points)
    middle = statistics.fmean(number for number, _ in points)
    spread = sum((number - middle) ** 2 for number, _ in points)
    error = math.sqrt(squares / (len(points) - 2) / spread)
    hourly = HOUR / width
    return Trend(
        level=statistics.fmean(values),
        slope=slope * hourly,
        low=(slope - T * error) * hourly,
        high=(slope + T * error) * hourly,
        rise=slope * BLOCKS,
    )


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value that a share of the values does not exceed."""
    return sorted(values)[int(share * (len(values) - 1))]
