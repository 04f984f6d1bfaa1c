"""Sizes and durations as people read them."""

from __future__ import annotations

import datetime as dt


def size(number: int) -> str:
    """Return a number of bytes as MiB or GiB."""
    return f"{number / 2**30:.1f} GiB" if number >= 2**30 else f"{number / 2**20:.0f} MiB"


def duration(delta: dt.timedelta) -> str:
    """Return a duration in one unit, from days to seconds; a negative one as none."""
    seconds = max(0, round(delta.total_seconds()))
    for length, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * length:
            return f"{seconds // length} {unit}"
    return f"{seconds} s"
