"""The limit of open files. Each connection is one."""

from __future__ import annotations

import resource

#: The limit to set where the system has no maximum.
UNLIMITED = 1 << 16


def raise_limit() -> int:
    """Raise the limit of open files to the maximum that this user may set; return the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = UNLIMITED if hard == resource.RLIM_INFINITY else hard
    if soft == resource.RLIM_INFINITY or soft >= limit:
        return limit
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    except (OSError, ValueError):  # macOS has a lower maximum than it reports.
        return soft
    return limit
