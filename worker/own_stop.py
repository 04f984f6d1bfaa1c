"""A worker that stops by itself, for its supervisor to start it again."""

from __future__ import annotations

import logging
import os
import signal
import threading

log = logging.getLogger(__name__)

#: The exit status after it: a failure that passes with a restart.
STATUS = os.EX_TEMPFAIL

_stopping = threading.Event()


def stop(reason: str) -> None:
    """Stop this worker as SIGTERM does, for a reason that its log will say."""
    log.critical("stopping: %s", reason)
    _stopping.set()
    os.kill(os.getpid(), signal.SIGTERM)


def status_after(status: int) -> int:
    """Return the exit status of this worker: supervisors restart after failures alone.

    Args:
        status: of a stop that somebody else asked for.
    """
    return STATUS if _stopping.is_set() and status == 0 else status
