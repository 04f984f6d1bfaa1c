"""Which sequence has which slot, and what the next step computes."""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass, field
from typing import Any

from worker.engine.detokenizer import Detokenizer
from worker.engine.interface import Generation


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
    #: New tokens so far.
    tokens: list[int] = field(default_factory=list)
    #: How many of them the detokenizer has seen.
    told: int = 0
    #: How many tokens have their keys and values in the cache.
    cached: int = 0
    slot: int | None = None
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

    @property
    def decoding(self) -> bool:
        """Whether all tokens but the newest are in the cache: a single one is to be computed."""
        return bool(self.tokens) and self.cached == len(self) - 1


@dataclass(frozen=True)
class Chunk:
    """A piece of a sequence whose keys and values are still to be computed."""

    sequence: Sequence
    start: int
    end: int

    @property
    def last(self) -> bool:
        """Whether a new token can be drawn after it."""
        return self.end == len(self.sequence)


@dataclass(frozen=True)
class Plan:
    """What one step computes: a token of each decoding sequence, and chunks of others."""

    #: In the order of their slots.
    decoding: list[Sequence]
    chunks: list[Chunk]

    def __bool__(self) -> bool:
        return bool(self.decoding or self.chunks)


class Scheduler:
    """Fills slots by priority, then in the order of arrival; feeds prompts in chunks.

    Decoding sequences take part in every step, so that a long prompt only stretches a step by a
    chunk and never stops them.
    """

    def __init__(self, slots: int, chunk: int) -> None:
        """
        Args:
            slots: sequences that are in the cache at once.
            chunk: the most prompt tokens of one step.
        """
        self.slots = slots
        self.chunk = chunk
        self.running: list[Sequence] = []
        self._waiting: list[tuple[int, int, Sequence]] = []
        self._arrivals = itertools.count()
        self._free = list(range(slots))

    def add(self, sequence: Sequence) -> None:
        """Let a sequence wait for a slot."""
        priority = sequence.generation.request.priority
        heapq.heappush(self._waiting, (-priority, next(self._arrivals), sequence))

    @property
    def waiting(self) -> list[Sequence]:
        return [sequence for *_, sequence in self._waiting]

    def plan(self) -> Plan:
        """Give free slots away, lowest first, and choose what to compute."""
        while self._waiting and len(self.running) < self.slots:
            *_, sequence = heapq.heappop(self._waiting)
            sequence.slot = heapq.heappop(self._free)
            self.running.append(sequence)
        decoding = [s for s in self.running if s.decoding]
        decoding.sort(key=_slot)
        chunks = []
        room = self.chunk
        for sequence in self.running:  # in the order in which they got their slots
            if not sequence.decoding and room:
                end = min(len(sequence), sequence.cached + room)
                chunks.append(Chunk(sequence, sequence.cached, end))
                room -= end - sequence.cached
        return Plan(decoding, chunks)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence, wherever it is; its slot is free at once."""
        if sequence.slot is None:
            self._waiting = [entry for entry in self._waiting if entry[2] is not sequence]
            heapq.heapify(self._waiting)
            return
        self.running.remove(sequence)
        heapq.heappush(self._free, sequence.slot)
        sequence.slot = None
        sequence.cached = 0

    def shrink(self) -> list[Sequence]:
        """Halve the slots: the youngest sequences wait again, and are computed anew later.

        Returns:
            those that wait again; none if there was one slot only.
        """
        if self.slots == 1:
            return []
        keep = max(1, min(self.slots, len(self.running)) // 2)
        evicted = self.running[keep:]
        for sequence in evicted:
            self.remove(sequence)
            self.add(sequence)
        self.slots = keep
        return evicted


def _slot(sequence: Sequence) -> Any:
    return sequence.slot
