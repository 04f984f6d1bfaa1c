"""What came of sending a webhook."""

from __future__ import annotations

from dataclasses import dataclass

#: The status with which a receiver says that it wants no more.
GONE = 410


@dataclass(frozen=True)
class Outcome:
    """What came of sending a webhook once."""

    #: None if there was no reply.
    status_code: int | None
    #: One sentence; None if the event was delivered.
    error: str | None
    #: Seconds.
    duration: float
    #: The least number of seconds until the next attempt that the receiver asked for.
    retry_after: float | None = None
