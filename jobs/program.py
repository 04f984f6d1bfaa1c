"""Starting `helixq` as a child process, and ending a process without taking Python down."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
from contextlib import suppress
from typing import NoReturn

_PR_SET_PDEATHSIG = 1
#: The command that runs `helixq` with this interpreter. ``-P``: what is in the working directory must not take the
#: place of our modules.
PROGRAM = (sys.executable, "-P", "-m", "helixq")


def die_with_parent() -> None:
    """On Linux, have SIGTERM end this child when its parent is killed. It is called between fork and exec."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def exit_at_once(status: int = 0) -> NoReturn:
    """End this process with an exit status, whatever its threads are doing.

    Otherwise they would go on while Python takes itself down, call what is gone already, and change what Python looks
    through: it prints tracebacks then, or aborts. With PyTorch, taking Python down also takes two seconds.
    """
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # Its reader is gone.
            stream.flush()
    os._exit(status)
