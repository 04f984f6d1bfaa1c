"""How a process starts another one of this program."""

from __future__ import annotations

import ctypes
import signal
import sys

_PR_SET_PDEATHSIG = 1
#: The command that runs `helixq` with this interpreter. ``-P``: what is in the working directory must not take the
#: place of our modules.
PROGRAM = (sys.executable, "-P", "-m", "helixq")


def die_with_parent() -> None:
    """On Linux, have SIGTERM end this child when its parent is killed. It is called between fork and exec."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
