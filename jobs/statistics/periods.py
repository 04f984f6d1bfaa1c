"""The periods that statistics are kept for: hours, days and months in UTC.

A range of hours is covered by as few of them as possible: its whole months, whole days before and after these, and
whole hours at its ends. So reading a range takes few rows, however long it is.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from enum import StrEnum
from typing import NamedTuple

#: All times are within these.
FIRST, LAST = dt.datetime(1970, 1, 1, tzinfo=dt.UTC), dt.datetime(2999, 1, 1, tzinfo=dt.UTC)


class Level(StrEnum):
    """The length of a period."""

    HOUR = "hour"
    DAY = "day"
    MONTH = "month"


class Run(NamedTuple):
    """Consecutive periods of one length: those that start from ``first`` on, and before ``end``."""

    level: Level
    first: dt.datetime
    end: dt.datetime


def start_of(level: Level, moment: dt.datetime) -> dt.datetime:
    """Return when the period that a time is in starts."""
    hour = moment.astimezone(dt.UTC).replace(minute=0, second=0, microsecond=0)
    if level is Level.HOUR:
        return hour
    day = hour.replace(hour=0)
    return day if level is Level.DAY else day.replace(day=1)


def following(level: Level, start: dt.datetime) -> dt.datetime:
    """Return when the period after one starts."""
    if level is Level.HOUR:
        return start + dt.timedelta(hours=1)
    if level is Level.DAY:
        return start + dt.timedelta(days=1)
    return (start + dt.timedelta(days=31)).replace(day=1)


def at_or_after(level: Level, moment: dt.datetime) -> dt.datetime:
    """Return the first start of a period at a time or later."""
    start = start_of(level, moment)
    return start if start == moment else following(level, start)


def starts(level: Level, first: dt.datetime, end: dt.datetime) -> Iterator[dt.datetime]:
    """Yield the starts of all periods from one on, and before another."""
    while first < end:
        yield first
        first = following(level, first)


def cover(since: dt.datetime, until: dt.datetime) -> list[Run]:
    """Return the periods that make up a range, whose ends are whole hours."""
    return list(_cover(since, until, [Level.MONTH, Level.DAY, Level.HOUR]))


def _cover(first: dt.datetime, end: dt.datetime, levels: list[Level]) -> Iterator[Run]:
    if first >= end:
        return
    level, *shorter = levels
    if not shorter:
        yield Run(level, first, end)
        return
    low, high = at_or_after(level, first), start_of(level, end)
    if low >= high:
        yield from _cover(first, end, shorter)
        return
    yield from _cover(first, low, shorter)
    yield Run(level, low, high)
    yield from _cover(high, end, shorter)
