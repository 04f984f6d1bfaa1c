"""Waiting for what notifies nobody: a row, a lock, a file, another program."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from tests.servers import PATIENCE

T = TypeVar("T")


def poll(
    read: Callable[[], T],
    is_enough: Callable[[T], object] = bool,
    *,
    interval: float = 0.05,
) -> T:
    """Read again and again, until what is read is enough; return that.

    Args:
        read: returns the state.
        is_enough: whether it is the one that is waited for; by default, whether it is true.
        interval: seconds between two readings.
    """
    give_up = time.monotonic() + PATIENCE
    while not is_enough(found := read()):
        assert time.monotonic() < give_up, found
        time.sleep(interval)
    return found
