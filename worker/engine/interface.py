"""The interface of an engine: submit a prompt, read text as it is generated, cancel."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Mapping
from contextvars import copy_context
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol, Self, runtime_checkable

from jobs.pipeline import Role, Sampling


class FinishReason(StrEnum):
    """Why a generation ended."""

    #: The model generated a stop token (EOS). A server elsewhere may say it of a stop string, too.
    STOP = "stop"
    #: The model generated one of the request's stop strings.
    STOP_STRING = "stop_string"
    #: ``max_output_tokens`` was reached.
    LENGTH = "length"
    CANCELLED = "cancelled"
    DEADLINE = "deadline"


#: Ends after which more tokens would have followed.
CUT = (FinishReason.CANCELLED, FinishReason.DEADLINE)


class EngineError(Exception):
    """A request cannot be served. Other requests are not affected."""

    @classmethod
    def of(cls, error: BaseException) -> Self:
        """Return the error of a request that another one kept from being served."""
        return cls(f"{type(error).__name__}: {error}")


class ContextExceededError(EngineError):
    """The prompt leaves no room for a single new token."""


class InterruptedGenerationError(EngineError):
    """The engine lost the request through no fault of its own: it may run again, from its beginning."""


@dataclass(frozen=True)
class Request:
    """One prompt for one role."""

    role: Role
    prompt: str
    sampling: Sampling
    #: Latest time to stop, on the clock of `time.monotonic` (seconds).
    deadline: float = math.inf
    #: Requests with a higher priority are scheduled first.
    priority: int = 0
    #: Headers that say which trace it belongs to, for servers elsewhere (W3C Trace Context).
    trace_headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Completion:
    """The result of a request, complete or cut short by a cancel or a deadline."""

    #: The new tokens, decoded without special tokens, up to a stop string; no whitespace is stripped.
    text: str
    #: ``text`` in the pieces in which it was streamed.
    deltas: list[str]
    prompt_tokens: int
    #: New tokens, those of a stop token or of a stop string included.
    output_tokens: int
    finish_reason: FinishReason
    #: The limit that applied: the request's, or a smaller one where the context leaves less.
    max_output_tokens: int
    #: Time of the first new token on the clock of `time.monotonic` (seconds); None without one.
    first_token_at: float | None
    #: Whether the numbers of tokens are known. They are 0 if a server did not say them.
    tokens_known: bool = True


class Generation:
    """A submitted request. The engine adds text; any thread may read or cancel.

    ``for delta in generation`` yields deltas as they are generated and stops at the end. `deltas_from`
    does not block. `result` waits for the end.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        #: Of the caller: lines of the log about the request, which an engine's thread writes, have what is bound there.
        self.context = copy_context()
        #: The address of the server that generates it, if the engine is elsewhere and has picked one.
        self.server: str | None = None
        self._deltas: list[str] = []
        self._changed = threading.Condition()
        self._cancelled = threading.Event()
        # Not part of the condition: a thread that waits for the end is not woken by every delta.
        self._finished = threading.Event()
        self._outcome: Completion | EngineError | None = None

    def __iter__(self) -> Iterator[str]:
        start = 0
        while deltas := self._wait_for_deltas(start):
            yield from deltas
            start += len(deltas)

    def _wait_for_deltas(self, start: int) -> list[str]:
        """Block until there are deltas from index ``start`` on; return none after the end."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._deltas) > start or self._finished.is_set())
            return self.deltas_from(start)

    def deltas_from(self, start: int) -> list[str]:
        """Return the deltas so far from index ``start`` on, without blocking."""
        return self._deltas[start:]

    @property
    def finished(self) -> bool:
        """Whether the text is complete."""
        return self._finished.is_set()

    def cancel(self) -> None:
        """Ask the engine to stop. It does so within one decode step."""
        self._cancelled.set()

    def result(self, timeout: float | None = None) -> Completion:
        """Wait for the end and return the completion.

        Args:
            timeout: seconds to wait; forever if None.

        Raises:
            EngineError: the request failed.
            TimeoutError: the request has not ended in time.
        """
        if not self._finished.wait(timeout):
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
        """Append the next piece of text."""
        with self._changed:
            self._deltas.append(delta)
            self._changed.notify_all()

    def finish(self, outcome: Completion | EngineError) -> None:
        """End the generation. Called once."""
        self._outcome = outcome
        self._finished.set()
        with self._changed:
            self._changed.notify_all()


@dataclass(frozen=True)
class EngineConfig:
    """How an engine computes. Histories record it: it changes no text but by rounding."""

    #: Maximum number of sequences that are decoded together.
    slots: int
    #: Maximum number of tokens of prompt and output together.
    max_context: int
    #: Whether the KV cache is paged.
    paged: bool
    #: Whether decode steps are CUDA graphs.
    cuda_graphs: bool


@dataclass(frozen=True)
class EngineStats:
    """What an engine does now, and what it has done since it started. None is what it does not measure."""

    #: Requests that are decoded together, and that wait.
    num_running: int
    num_waiting: int
    #: Steps, and the seconds that they took, scheduling included.
    num_steps: int | None = None
    step_seconds: float | None = None
    #: Tokens that steps computed, of prompts and outputs, without rejected drafts.
    num_computed_tokens: int | None = None
    #: Requests that were evicted from the KV cache, to be computed again.
    num_preemptions: int | None = None
    #: Blocks of the KV cache, or rows of one of rows; and how many of them running requests have.
    num_kv_blocks: int | None = None
    num_used_kv_blocks: int | None = None
    #: Memory of the CUDA device in bytes: what all processes use, and what there is.
    gpu_memory_used: int | None = None
    gpu_memory: int | None = None


class Engine(Protocol):
    """A base model with adapters, ready to generate."""

    #: The name that histories record.
    name: str
    #: Maximum number of requests that are decoded together; others wait.
    max_num_seqs: int
    #: Maximum number of tokens of prompt and output together.
    max_model_len: int

    def submit(self, request: Request) -> Generation:
        """Queue a request.

        Raises:
            ContextExceededError: the prompt does not fit.
            EngineError: the prompt has no tokens.
        """
        ...

    def close(self) -> None:
        """Cancel running requests, and stop."""
        ...


@runtime_checkable
class MeasuredEngine(Engine, Protocol):
    """An engine that says what it does."""

    def stats(self) -> EngineStats:
        """Return what it does. Any thread may call it; it reads counters, and costs steps nothing."""
        ...
