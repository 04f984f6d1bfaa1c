"""How times are written for programs: as RFC 3339 or as whole seconds or microseconds since 1970."""

from __future__ import annotations

import datetime as dt
from typing import overload

MICROSECOND = dt.timedelta(microseconds=1)
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


@overload
def rfc3339(time: dt.datetime, timespec: str = ...) -> str: ...
@overload
def rfc3339(time: dt.datetime | None, timespec: str = ...) -> str | None: ...
def rfc3339(time: dt.datetime | None, timespec: str = "milliseconds") -> str | None:
    """Return a time in UTC as RFC 3339, as precise as `datetime.isoformat` makes it for ``timespec``; None for None."""
    return None if time is None else time.isoformat(timespec=timespec).replace("+00:00", "Z")


@overload
def timestamp(time: dt.datetime) -> int: ...
@overload
def timestamp(time: dt.datetime | None) -> int | None: ...
def timestamp(time: dt.datetime | None) -> int | None:
    """Return a time in whole seconds since 1970, as OpenAI's API has it; None for None."""
    return None if time is None else int(time.timestamp())


def microseconds(time: dt.datetime) -> int:
    """Return a time in microseconds since 1970, which a float could not hold."""
    return (time - _EPOCH) // MICROSECOND


def from_microseconds(count: int) -> dt.datetime:
    """Return the time of a number of microseconds since 1970: the reverse of `microseconds`."""
    return _EPOCH + count * MICROSECOND
