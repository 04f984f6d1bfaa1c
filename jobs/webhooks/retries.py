"""When a failed delivery is tried again."""

from __future__ import annotations

import datetime as dt
import random
from email.utils import parsedate_to_datetime

from jobs.backoff import Backoff

#: Seconds after which a delivery is given up: a day.
GIVE_UP_AFTER = 86_400.0
#: There are about twelve attempts in a day, the first six within half an hour, as Standard Webhooks suggests.
BACKOFF = Backoff(first=5.0, factor=4.0, most=4 * 3600.0)
#: The share of a delay by which it may be shorter or longer, so that what failed together does not return
#: together.
JITTER = 0.2
#: Failures after which the delay does not grow any more.
MAX_GROWTH = 7


def delay(failures: int, retry_after: float | None = None) -> float:
    """Return the seconds until the next attempt, with jitter.

    Args:
        failures: attempts that have failed, 1 or more.
        retry_after: the least number of seconds that the receiver asked for; it counts up to the longest delay.
    """
    with_jitter = BACKOFF.delay(failures) * random.uniform(1 - JITTER, 1 + JITTER)
    return max(with_jitter, min(retry_after or 0.0, BACKOFF.most))


def longest_delay(failures: int) -> float:
    """Return the most that `delay` returns, where a receiver asks for nothing. At most `MAX_GROWTH` failures count."""
    return BACKOFF.delay(failures) * (1 + JITTER) if failures else 0.0


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
