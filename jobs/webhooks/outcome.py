"""The outcome of sending a webhook."""

from __future__ import annotations

from dataclasses import dataclass

#: The status of a receiver that wants no more webhooks.
GONE = 410


@dataclass(frozen=True)
class Outcome:
    """The outcome of one attempt."""

    #: None if there was no reply.
    status_code: int | None
    #: One sentence; None if the event was delivered.
    error: str | None
    #: Seconds.
    duration: float
    #: The least number of seconds until the next attempt that the receiver asked for.
    retry_after: float | None = None
