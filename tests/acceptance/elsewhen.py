"""``python -m tests.acceptance.elsewhen SECONDS worker``: a process whose clock is wrong.

Stands in for another host: what Python asks for the time is off by so many seconds. (The system's
clock cannot be set for one process.)
"""

from __future__ import annotations

import sys
import time

off = int(sys.argv.pop(1))
now, now_ns = time.time, time.time_ns
time.time = lambda: now() + off
time.time_ns = lambda: now_ns() + off * 10**9

from cli.main import main  # noqa: E402 (only now does everybody see that clock)

if __name__ == "__main__":
    main()
