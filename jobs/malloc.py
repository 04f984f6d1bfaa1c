"""How glibc allocates memory for the threads of a process."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress

#: The parameter of ``mallopt`` for the maximum number of arenas, as in glibc's ``malloc.h``.
M_ARENA_MAX = -8
ARENAS = 2


def limit_arenas() -> None:
    """Let all threads share two arenas, unless ``MALLOC_ARENA_MAX`` says how many. It must come before the first thread.

    By default glibc makes up to eight for each core and spreads threads over them. Each keeps the most that
    its threads ever needed at once, so the process grows for hours while what is in use stays the same.
    """
    if "MALLOC_ARENA_MAX" not in os.environ:
        with suppress(AttributeError, OSError):  # Another C library.
            ctypes.CDLL(None).mallopt(M_ARENA_MAX, ARENAS)
