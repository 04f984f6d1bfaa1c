"""How long a witness or a receiver of traces is left alone after a failure."""

from __future__ import annotations

#: Seconds after the first failure, and at most.
FIRST_DELAY, MAX_DELAY = 2.0, 300.0


def backoff(failures: int) -> float:
    """Return the seconds until the next attempt after ``failures`` in a row, 1 or more: each time twice as many."""
    return min(FIRST_DELAY * 2.0 ** min(failures - 1, 16), MAX_DELAY)
