"""What the threads of this process are doing."""

from __future__ import annotations

import sys
import threading
import traceback
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

#: Names of threads that do the same that are written out.
MAX_NAMES = 3


def describe() -> Iterator[str]:
    """Yield the stacks of all threads: lines of code, the innermost first, without values.

    Threads that do the same have one line.
    """
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    threads: dict[str, list[str]] = defaultdict(list)
    for ident, frame in sys._current_frames().items():
        calls = (
            f"{Path(f.f_code.co_filename).name}:{line} {f.f_code.co_name}"
            for f, line in traceback.walk_stack(frame)
        )
        threads[" < ".join(calls)].append(names.get(ident, "a thread of a library"))
    for stack, found in threads.items():
        more = f" and {len(found) - MAX_NAMES} more" if len(found) > MAX_NAMES else ""
        yield f"{', '.join(sorted(found)[:MAX_NAMES])}{more}: {stack}"
