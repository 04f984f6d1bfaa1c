"""How many files a process may have open; a connection is one."""

from __future__ import annotations

import resource

#: What systems grant that name no limit.
UNLIMITED = 1 << 16


def raise_open_files() -> int:
    """Raise the limit of open files as far as this user may; return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = UNLIMITED if hard == resource.RLIM_INFINITY else hard
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError):  # macOS has another limit besides
        return soft
    return wanted
