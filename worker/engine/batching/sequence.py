"""A request on its way through the engine: its tokens, and how far it is."""

from __future__ import annotations

from dataclasses import dataclass, field

from worker.engine.interface import Generation
from worker.engine.tokenization.detokenizer import Detokenizer

#: The row of a sequence that waits.
NOWHERE = -1
#: Stands in `Sequence.tokens` for one that is drawn but not read yet: its step is under way.
PENDING = -1


@dataclass(eq=False)
class Sequence:
    """A request on its way through the engine."""

    generation: Generation
    #: Tokens of the prompt.
    prompt: list[int]
    #: The most new tokens.
    limit: int
    #: Index of the role's adapter.
    adapter: int
    detokenizer: Detokenizer
    #: New tokens so far; the last one may be `PENDING`.
    tokens: list[int] = field(default_factory=list)
    #: How many of them are on their way to the detokenizer.
    told: int = 0
    #: Whether the engine has let go of it; its generation ends when all of its text is told.
    ended: bool = False
    #: How many tokens have their keys and values in the cache.
    cached: int = 0
    #: Guesses of the tokens after the newest, which the next step computes along with it.
    draft: list[int] = field(default_factory=list)
    #: Whether it may have some.
    drafts: bool = True
    #: Of the cache, while it runs.
    row: int = NOWHERE
    #: Its place in the order of arrival, kept when it waits again; None before it first waits.
    arrival: int | None = None
    #: As `time.monotonic` counts.
    first_token_at: float | None = None

    def __len__(self) -> int:
        """Tokens of the prompt and new ones."""
        return len(self.prompt) + len(self.tokens)

    def slice(self, start: int, end: int) -> list[int]:
        """Return tokens ``start … end - 1``."""
        known = len(self.prompt)
        if end <= known:
            return self.prompt[start:end]
        return self.prompt[start:] + self.tokens[max(start - known, 0) : end - known]

    def last(self, count: int) -> list[int]:
        """Return the last tokens, as many as there are."""
        return self.slice(max(len(self) - count, 0), len(self))

    @property
    def newest(self) -> list[int]:
        """What a step computes of it while it decodes: the newest token and the draft."""
        return [self.tokens[-1], *self.draft]

    @property
    def decoding(self) -> bool:
        """Whether all tokens but the newest are in the cache: a single one is to be computed."""
        return bool(self.tokens) and self.cached == len(self) - 1

    @property
    def complete(self) -> bool:
        """Whether it has all the new tokens that it may have, read or not."""
        return len(self.tokens) >= self.limit

    @property
    def pending(self) -> bool:
        """Whether its newest token is not read yet."""
        return bool(self.tokens) and self.tokens[-1] == PENDING

    @property
    def sound(self) -> bool:
        """Whether a token was read that was drawn from its scores: the prompt's keys are numbers."""
        return bool(self.tokens) and self.tokens[0] != PENDING
