"""Waiting for what has no event, with a limit."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from tests.servers import PATIENCE

T = TypeVar("T")


def until(condition: Callable[[], T], limit: float = PATIENCE) -> T:
    """Ask until the answer is true; return it.

    Args:
        condition: what to ask.
        limit: maximum seconds.

    Raises:
        AssertionError: the answer is still not true.
    """
    give_up = time.monotonic() + limit
    while not (answer := condition()):
        assert time.monotonic() < give_up, f"still {answer!r} after {limit:g} seconds"
        time.sleep(0.05)
    return answer
