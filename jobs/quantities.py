"""Sizes, durations and places as people read them."""

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


def about(seconds: float) -> str:
    """Return an estimated duration: from one and a half minutes on in minutes."""
    if seconds < 90:
        return f"about {max(1, round(seconds))} s"
    return f"about {round(seconds / 60)} min"


def ordinal(number: int) -> str:
    """Return 1st, 2nd, 3rd, 4th, …"""
    last = number % 10 if number % 100 not in (11, 12, 13) else 0
    return f"{number:,}{ {1: 'st', 2: 'nd', 3: 'rd'}.get(last, 'th') }"
