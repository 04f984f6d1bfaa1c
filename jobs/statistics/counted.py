"""What an ended job counts for in the statistics: numbers, and no text.

It is stored with the job, so that exactly that can be taken off again, and all numbers are integers, so that sums
to which something was added and taken off again are what they were.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

#: A share is counted in millionths, and a time in microseconds: sums of integers have no rounding error.
MILLION = 1_000_000


class Stage(NamedTuple):
    """A finished stage. Times are microseconds."""

    role: str
    time: int
    #: From the start to the first token.
    first_token: int | None
    prompt_tokens: int | None
    output_tokens: int | None

    @property
    def rate(self) -> int | None:
        """Tokens a second after the first one, in thousandths; None without a second one."""
        if self.first_token is None or self.output_tokens is None:
            return None
        writing, tokens = self.time - self.first_token, self.output_tokens - 1
        return tokens * MILLION * 1000 // writing if writing > 0 and tokens > 0 else None


@dataclass(frozen=True)
class Counted:
    """What a job counts for."""

    status: str
    #: Attempts at stages, and those of them whose worker stopped responding.
    attempts: int
    lost: int
    #: Microseconds from the acceptance to the first start, and to the end.
    queue_wait: int | None
    duration: int
    #: Millionths of the words that the regenerator changed.
    changed: int | None
    #: The last ratings, and the numbers of reviews and of those with a corrected answer.
    regeneration: int | None
    critique: int | None
    reviews: int
    corrected: int
    stages: tuple[Stage, ...] = ()

    def counts(self) -> Iterator[str]:
        """Yield the names of what it is one of."""
        yield self.status
        for name in ("regeneration", "critique"):
            rating = getattr(self, name)
            if rating is not None:
                yield f"{name}.{rating}"
        if self.reviews:
            yield "reviewed"
        if self.corrected:
            yield "corrected"

    def values(self) -> Iterator[tuple[str, int]]:
        """Yield the names of measures, each with a value; stages have several of some."""
        for name in ("queue_wait", "duration", "changed"):
            value = getattr(self, name)
            if value is not None:
                yield name, value
        for stage in self.stages:
            for name in ("time", "first_token", "prompt_tokens", "output_tokens", "rate"):
                value = getattr(stage, name)
                if value is not None:
                    yield f"{stage.role}.{name}", value

    def dump(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {**asdict(self), "stages": [list(stage) for stage in self.stages]}

    @classmethod
    def load(cls, dumped: dict[str, Any]) -> Counted:
        """Return what `dump` made JSON of."""
        return cls(**{**dumped, "stages": tuple(Stage(*stage) for stage in dumped["stages"])})
