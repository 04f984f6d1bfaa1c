"""When a failed delivery is tried again."""

from __future__ import annotations

import datetime as dt
import random
from email.utils import parsedate_to_datetime

#: Seconds after which a delivery is given up: a day.
GIVE_UP_AFTER = 86_400.0
#: Seconds before the second attempt.
FIRST_DELAY = 5.0
#: How many times as long each delay is as the one before.
FACTOR = 4.0
#: The maximum number of seconds between two attempts. There are about twelve in a day, the first six
#: within half an hour, as Standard Webhooks suggests.
MAX_DELAY = 4 * 3600.0
#: The share of a delay by which it may be shorter or longer, so that what failed together does not return
#: together.
JITTER = 0.2
#: Failures after which the delay does not grow any more.
MAX_GROWTH = 7


def delay(failures: int, retry_after: float | None = None) -> float:
    """Return the seconds until the next attempt, with jitter.

    Args:
        failures: attempts that have failed, 1 or more.
        retry_after: the least number of seconds that the receiver asked for; it counts up to `MAX_DELAY`.
    """
    with_jitter = _exponential(failures) * random.uniform(1 - JITTER, 1 + JITTER)
    return max(with_jitter, min(retry_after or 0.0, MAX_DELAY))


def longest_delay(failures: int) -> float:
    """Return the most that `delay` returns, where a receiver asks for nothing. At most `MAX_GROWTH` failures count."""
    return _exponential(failures) * (1 + JITTER) if failures else 0.0


def _exponential(failures: int) -> float:
    return min(MAX_DELAY, FIRST_DELAY * FACTOR ** (min(failures, MAX_GROWTH) - 1))


def parse_retry_after(value: str, now: dt.datetime) -> float | None:
    """Return the seconds of a ``Retry-After`` header; None if it is neither a number nor a date."""
    text = value.strip()
    if text.isascii() and text.isdecimal():
        return float(text[:9])
    try:
        date = parsedate_to_datetime(text)
        if date.tzinfo is None:
            date = date.replace(tzinfo=dt.UTC)
        return max(0.0, (date - now).total_seconds())
    except (ValueError, TypeError, OverflowError, IndexError):
        return None  # The parser has more errors than it documents.
