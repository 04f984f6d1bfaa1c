"""Promises about time, which a busy machine may spoil once and not every time."""

from __future__ import annotations

from collections.abc import Callable

#: How often something is tried.
TRIES = 5


def promptly(attempt: Callable[[], float], seconds: float) -> None:
    """Check that something takes no longer than promised. Only if it took longer, it is tried again.

    Args:
        attempt: does it, and returns the seconds that it took.
        seconds: the promise.
    """
    taken: list[float] = []
    while not taken or taken[-1] > seconds:
        assert len(taken) < TRIES, f"it took {taken} seconds, and never at most {seconds:g}"
        taken.append(attempt())
