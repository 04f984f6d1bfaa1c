"""What the worker asks of an engine: submit a prompt, read tokens as they come, cancel."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from jobs.pipeline import Role, Sampling


class FinishReason(StrEnum):
    """Why a generation ended."""

    #: The model ended its text (EOS).
    STOP = "stop"
    #: The token limit was reached.
    LENGTH = "length"
    CANCELLED = "cancelled"
    DEADLINE = "deadline"


class EngineError(Exception):
    """A request cannot be served; the others go on."""


class ContextExceededError(EngineError):
    """The prompt leaves no room for a single new token."""


@dataclass(frozen=True)
class Request:
    """One prompt for one role."""

    role: Role
    prompt: str
    sampling: Sampling
    #: When to stop at the latest, as `time.monotonic` counts (seconds).
    deadline: float = math.inf
    #: Requests with a higher one get a free slot first.
    priority: int = 0


@dataclass(frozen=True)
class Completion:
    """What a request gave, also when it was cancelled half way."""

    #: The new tokens decoded with special tokens skipped, and nothing stripped.
    text: str
    #: ``text`` in the pieces it was streamed in.
    deltas: list[str]
    prompt_tokens: int
    #: New tokens, the one that ends the text included.
    output_tokens: int
    finish_reason: FinishReason
    #: The limit that applied: the request's, or less where the context left less room.
    max_output_tokens: int
    #: When the first new token was there, as `time.monotonic` counts (seconds).
    first_token_at: float | None


class Generation:
    """A submitted request. The engine feeds it its text; any thread may read or cancel.

    ``for delta in generation`` yields pieces of text as they come and ends with the
    generation; `since` does not wait for them; `result` gives the whole.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        self._deltas: list[str] = []
        self._news = threading.Condition()
        self._cancelled = threading.Event()
        # Apart from the news: who waits for the end is not woken by every piece.
        self._ended = threading.Event()
        self._outcome: Completion | EngineError | None = None

    def __iter__(self) -> Iterator[str]:
        read = 0
        while new := self._after(read):
            yield from new
            read += len(new)

    def _after(self, read: int) -> list[str]:
        """Wait for pieces after the first ``read``; none come after the end."""
        with self._news:
            self._news.wait_for(lambda: len(self._deltas) > read or self._ended.is_set())
            return self.since(read)

    def since(self, read: int) -> list[str]:
        """Return the pieces of text so far but for the first ``read``."""
        return self._deltas[read:]

    @property
    def ended(self) -> bool:
        """Whether all of the text is there."""
        return self._ended.is_set()

    def cancel(self) -> None:
        """Ask the engine to stop; it does so within one decode step."""
        self._cancelled.set()

    def result(self, timeout: float | None = None) -> Completion:
        """Wait for the end and return what was generated.

        Args:
            timeout: the most seconds to wait.

        Raises:
            EngineError: the request failed.
            TimeoutError: it has not ended in time.
        """
        if not self._ended.wait(timeout):
            raise TimeoutError("the generation has not ended yet")
        if isinstance(self._outcome, EngineError):
            raise self._outcome
        assert self._outcome is not None  # noqa: S101 (set before the event)
        return self._outcome

    # --- the engine's side ------------------------------------------------------------

    @property
    def cancelled(self) -> bool:
        """Whether the caller asked to stop."""
        return self._cancelled.is_set()

    def emit(self, delta: str) -> None:
        """Hand on the next piece of text."""
        with self._news:
            self._deltas.append(delta)
            self._news.notify_all()

    def end(self, outcome: Completion | EngineError) -> None:
        """Finish the generation, once."""
        self._outcome = outcome
        self._ended.set()
        with self._news:
            self._news.notify_all()


class Engine(Protocol):
    """A model with its adapters, ready to generate."""

    #: The name that histories show.
    name: str
    #: Requests that are decoded at the same time; more wait their turn.
    slots: int
    #: Tokens of prompt and output together.
    context: int

    def submit(self, request: Request) -> Generation:
        """Queue a request.

        Raises:
            ContextExceededError: the prompt does not fit.
        """
        ...

    def close(self) -> None:
        """Cancel what runs, and stop."""
        ...
