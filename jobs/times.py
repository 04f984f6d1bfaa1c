"""How times are written for programs."""

from __future__ import annotations

import datetime as dt
from typing import overload


@overload
def rfc3339(time: dt.datetime) -> str: ...
@overload
def rfc3339(time: dt.datetime | None) -> str | None: ...
def rfc3339(time: dt.datetime | None) -> str | None:
    """Return a time as RFC 3339 in UTC with milliseconds; None for None."""
    return None if time is None else time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


@overload
def timestamp(time: dt.datetime) -> int: ...
@overload
def timestamp(time: dt.datetime | None) -> int | None: ...
def timestamp(time: dt.datetime | None) -> int | None:
    """Return a time in whole seconds since 1970, as OpenAI's API has it; None for None."""
    return None if time is None else int(time.timestamp())
