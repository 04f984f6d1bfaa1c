"""Waiting for the threads of tests, with a limit."""

from __future__ import annotations

import sys
import threading
import traceback

from tests.servers import PATIENCE


def join(thread: threading.Thread, limit: float = PATIENCE) -> None:
    """Wait for the end of a thread.

    Args:
        thread: that has been told to end.
        limit: maximum seconds.

    Raises:
        AssertionError: it still runs; the message says where.
    """
    thread.join(limit)
    if thread.is_alive():
        frame = sys._current_frames().get(thread.ident or 0)
        where = "".join(traceback.format_stack(frame)) if frame else ""
        raise AssertionError(f"{thread.name} has not ended within {limit:g} seconds:\n{where}")
