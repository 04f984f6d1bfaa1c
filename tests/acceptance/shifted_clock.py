"""``python -m tests.acceptance.shifted_clock SECONDS worker``: a process whose clock is wrong.

It simulates another host: Python's clocks are off by SECONDS. (The system's clock cannot be set for one
process.) With ``paced`` before ``worker``, it is a worker as of `tests.acceptance.paced` too.
"""

from __future__ import annotations

import sys
import time

off = int(sys.argv.pop(1))
now, now_ns = time.time, time.time_ns
wrong = {now: lambda: now() + off, now_ns: lambda: now_ns() + off * 10**9}
# Also for those that a fork has imported already, with a name of their own for it.
for module in list(sys.modules.values()):
    for name, clock in list(getattr(module, "__dict__", {}).items()):
        if module is not sys.modules[__name__] and (clock is now or clock is now_ns):
            setattr(module, name, wrong[clock])

from cli.main import main  # noqa: E402 (only now does everybody see that clock)
from tests.acceptance import paced  # noqa: E402 (the same)

if __name__ == "__main__":
    if sys.argv[1] == "paced":
        sys.argv.pop(1)
        paced.arrange()
    main()
