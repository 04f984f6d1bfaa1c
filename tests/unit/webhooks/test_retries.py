"""The times of attempts."""

from __future__ import annotations

import datetime as dt
from itertools import accumulate

import pytest

from jobs.webhooks import retries


def test_the_attempts_of_a_day() -> None:
    delays = [[retries.delay(failures) for _ in range(100)] for failures in range(1, 1000)]
    for failures, expected in enumerate((5, 20, 80, 320, 1280, 5120, 14_400, 14_400), start=1):
        some = delays[failures - 1]
        assert all(0.8 * expected <= delay <= 1.2 * expected for delay in some)
        assert max(some) - min(some) > 0.2 * expected, "jitter"
    times = list(accumulate(some[0] for some in delays))
    assert times[4] < 45 * 60
    assert 9 <= sum(time < retries.GIVE_UP_AFTER for time in times) <= 13


def test_a_receiver_can_ask_for_more_time_but_not_for_less() -> None:
    assert retries.delay(1, 100.0) == 100.0
    assert retries.delay(1, 0.0) >= 4.0
    assert retries.delay(1, 1e9) == retries.BACKOFF.most


NOW = dt.datetime(2030, 1, 31, 12, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("120", 120.0),
        (" 0 ", 0.0),
        ("Thu, 31 Jan 2030 12:00:30 GMT", 30.0),
        ("Thu, 31 Jan 2030 11:00:00 GMT", 0.0),
        ("Thu, 31 Jan 2030 12:00:30 -0000", 30.0),
        ("Thu, 31 Jan 2030 13:00:30 +0100", 30.0),
        ("soon", None),
        ("-1", None),
        ("1.5", None),
        ("", None),
        ("9" * 50, 999_999_999.0),
    ],
)
def test_retry_after(value: str, seconds: float | None) -> None:
    assert retries.parse_retry_after(value, NOW) == seconds
