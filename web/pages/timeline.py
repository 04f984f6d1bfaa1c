"""A job's timeline: for each attempt a bar of the times that it waited, read its prompt and wrote."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass

from jobs.models import Attempt, AttemptStatus, Job

#: Attempts whose bars are hatched: their text was lost.
LOST = (AttemptStatus.LOST, AttemptStatus.RELEASED)
#: The smallest part of a bar that is drawn, in percent.
SMALLEST = 0.3

#: Why an attempt ended that did not finish, where it has no error of its own.
_REASONS = {
    AttemptStatus.LOST: "The worker stopped responding.",
    AttemptStatus.RELEASED: "The worker shut down and gave the stage back.",
    AttemptStatus.CANCELLED: "The job was cancelled.",
}


@dataclass(frozen=True)
class Part:
    """A part of a bar: ``queued``, ``prompt``, ``writing`` or ``ran``, from where and how wide, in percent.

    When the first token came is stored at the end. Until then, and if the attempt was lost, it only ran.
    """

    kind: str
    start: float
    width: float


@dataclass(frozen=True)
class Bar:
    """An attempt on the timeline."""

    attempt: Attempt
    parts: list[Part]
    queued: dt.timedelta
    #: None for what is not known.
    prompt: dt.timedelta | None
    writing: dt.timedelta | None
    lost: bool
    #: How it ended, in words; None while it is running.
    outcome: str | None

    @property
    def ran(self) -> bool:
        """Whether it is not known when it had read its prompt."""
        return any(part.kind == "ran" for part in self.parts)

    @property
    def rate(self) -> float | None:
        """Tokens a second after the first one."""
        tokens, seconds = (
            self.attempt.output_tokens,
            self.writing and self.writing.total_seconds(),
        )
        return (tokens - 1) / seconds if tokens and tokens > 1 and seconds else None


def bars(job: Job, now: dt.datetime) -> list[Bar]:
    """Return the bars of a job's attempts, in the order in which they started."""
    ends = [attempt.finished_at or now for attempt in job.attempts]
    start = job.created_at
    end = max([job.finished_at or now, *ends])
    whole = max((end - start).total_seconds(), 0.001)

    def place(time: dt.datetime) -> float:
        return min(max((time - start).total_seconds() / whole * 100, 0.0), 100.0)

    return [_bar(attempt, place, now) for attempt in job.attempts]


def outcome(attempt: Attempt) -> str | None:
    """Return how an attempt ended, in words; None while it is running."""
    match attempt.status:
        case AttemptStatus.RUNNING:
            return None
        case AttemptStatus.FINISHED if attempt.finish_reason == "length":
            return "Finished at its token limit."
        case AttemptStatus.FINISHED if attempt.finish_reason == "stop_string":
            return "Finished at a stop string."
        case AttemptStatus.FINISHED:
            return "Finished."
        case status if attempt.error:
            return f"{status.value.capitalize()}: {attempt.error}"
        case status:
            return _REASONS.get(status, status.value.capitalize())


def _bar(attempt: Attempt, place: Callable[[dt.datetime], float], now: dt.datetime) -> Bar:
    end = attempt.finished_at or now
    first = attempt.first_token_at
    times = [
        ("queued", attempt.queued_at, attempt.started_at),
        ("prompt", attempt.started_at, first),
        ("ran", None if first else attempt.started_at, end),
        ("writing", first, end if first else None),
    ]
    parts = [
        Part(kind, round(place(a), 2), round(max(place(b) - place(a), SMALLEST), 2))
        for kind, a, b in times
        if a is not None and b is not None
    ]
    return Bar(
        attempt=attempt,
        parts=parts,
        queued=max(attempt.started_at - attempt.queued_at, dt.timedelta()),
        prompt=first - attempt.started_at if first else None,
        # Both times are of the database, and its clock may have been set back between them.
        writing=max(end - first, dt.timedelta()) if first else None,
        lost=attempt.status in LOST,
        outcome=outcome(attempt),
    )
