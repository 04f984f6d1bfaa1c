"""Which sequence has which row of the cache, and what the next step computes."""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass, field

from worker.engine.allowance import Allowance
from worker.engine.detokenizer import Detokenizer
from worker.engine.interface import Generation
from worker.engine.prefixes import Place, Prefixes

#: The row of a sequence that waits.
NOWHERE = -1


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
    #: Guesses of the tokens after the newest, which the next step computes along with it.
    draft: list[int] = field(default_factory=list)
    #: Whether it may have some.
    drafts: bool = True
    #: Of the cache, while it runs.
    row: int = NOWHERE
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
    """What one step computes: each decoding sequence's newest token and draft, chunks of others."""

    #: By adapter, and then in the order of their rows.
    decoding: list[Sequence]
    #: By adapter.
    chunks: list[Chunk]
    #: Which rows take over what others hold, one after the other, before anything is computed.
    copies: list[Place] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.decoding or self.chunks)

    @property
    def sequences(self) -> list[Sequence]:
        """All that it computes something of."""
        return [*self.decoding, *(chunk.sequence for chunk in self.chunks)]

    @property
    def prompt_tokens(self) -> int:
        """How many tokens the chunks have."""
        return sum(chunk.end - chunk.start for chunk in self.chunks)

    def parts(self, *, by_adapter: bool) -> list[tuple[list[Sequence], list[Chunk]]]:
        """Return what is computed, in the order in which it is: by adapter, or all at once."""
        if not by_adapter:
            return [(self.decoding, self.chunks)]
        found: dict[int, tuple[list[Sequence], list[Chunk]]] = {}
        for sequence in self.decoding:
            found.setdefault(sequence.adapter, ([], []))[0].append(sequence)
        for chunk in self.chunks:
            found.setdefault(chunk.sequence.adapter, ([], []))[1].append(chunk)
        return [found[adapter] for adapter in sorted(found)]


class Scheduler:
    """Lets sequences in by priority, then in the order of arrival; feeds prompts in chunks.

    Decoding sequences take part in every step, so that a long prompt only stretches a step by a
    chunk and never stops them. A sequence gets its row of the cache in the step that computes its
    first chunk: by then others may have computed what its prompt begins with.
    """

    def __init__(self, slots: int, chunk: int, *, rows: int, context: int, adapters: int) -> None:
        """
        Args:
            slots: sequences that run at once.
            chunk: the most prompt tokens of one step.
            rows: of the cache, at least as many as slots.
            context: the most tokens of a row.
            adapters: how many there are.
        """
        self._slots = Allowance(slots)
        self._chunk = Allowance(chunk)
        self.running: list[Sequence] = []
        self._waiting: list[tuple[int, int, Sequence]] = []
        self._arrivals = itertools.count()
        #: Rows that are free, and whose keys and values may be no numbers.
        self.damaged: list[int] = []
        self._free = set(range(rows))
        self._prefixes = Prefixes(rows, context, adapters)

    def add(self, sequence: Sequence) -> None:
        """Let a sequence wait for a slot."""
        priority = sequence.generation.request.priority
        heapq.heappush(self._waiting, (-priority, next(self._arrivals), sequence))

    @property
    def slots(self) -> int:
        """Sequences that may run at once: as many as at the beginning, or what memory carries."""
        return self._slots.now

    @property
    def chunk(self) -> int:
        """The most prompt tokens of a step."""
        return self._chunk.now

    @property
    def waiting(self) -> list[Sequence]:
        return [sequence for *_, sequence in self._waiting]

    def plan(self) -> Plan:
        """Choose what to compute, and let sequences in while there is room for their prompts."""
        decoding = [s for s in self.running if s.decoding]
        decoding.sort(key=lambda s: (s.adapter, s.row))
        chunks: list[Chunk] = []
        copies: list[Place] = []
        room = self.chunk
        for sequence in self.running:  # in the order in which they came in
            if not sequence.decoding and room:
                chunks.append(_chunk(sequence, room))
                room -= chunks[-1].end - chunks[-1].start
        while self._waiting and len(self.running) < self.slots and room:
            *_, sequence = heapq.heappop(self._waiting)
            place = self._prefixes.place(sequence.adapter, sequence.prompt, self._free)
            self._free.remove(place.row)
            sequence.row, sequence.cached = place.row, place.length
            self.running.append(sequence)
            if place.source != place.row:
                copies.append(place)
            chunks.append(_chunk(sequence, room))
            room -= chunks[-1].end - chunks[-1].start
        chunks.sort(key=lambda chunk: chunk.sequence.adapter)
        return Plan(decoding, chunks, copies)

    def common(self, sequences: list[Sequence]) -> int:
        """Count the tokens that running sequences of one adapter have in common at their beginning."""
        return self._prefixes.common([s.row for s in sequences])

    def computed(self, plan: Plan) -> bool:
        """Note that a step is done: what it computed is in the cache.

        Returns:
            whether steps may be larger again from now on, after memory had run out.
        """
        for sequence in plan.decoding:
            sequence.cached += 1
        for chunk in plan.chunks:
            sequence = chunk.sequence
            sequence.cached = chunk.end
            # Texts are not worth remembering: no prompt of a role goes on with what it wrote.
            if tokens := sequence.prompt[chunk.start : chunk.end]:
                self._prefixes.record(sequence.row, sequence.adapter, chunk.start, tokens)
        grown = self._slots.succeed(len(self.running)), self._chunk.succeed(plan.prompt_tokens)
        return any(grown)

    def remove(self, sequence: Sequence, *, damaged: bool = False) -> None:
        """Forget a sequence, wherever it is; its row is free at once.

        Args:
            sequence: the sequence.
            damaged: whether what it leaves in the cache may be no numbers; it also may if no token was
                drawn yet, since the scores are what is looked at.
        """
        if sequence.row == NOWHERE:
            self._waiting = [entry for entry in self._waiting if entry[2] is not sequence]
            heapq.heapify(self._waiting)
            return
        self.running.remove(sequence)
        self._free.add(sequence.row)
        if damaged or not sequence.tokens:
            self._prefixes.forget(sequence.row)
            self.damaged.append(sequence.row)
        sequence.row = NOWHERE
        sequence.cached = 0
        sequence.draft = []

    def shorten(self, plan: Plan) -> None:
        """Halve the prompt tokens of a step, after the plan was too much."""
        self._chunk.halve(plan.prompt_tokens)

    def shrink(self) -> list[Sequence]:
        """Halve the slots: the youngest sequences wait again, and are computed anew later.

        Returns:
            those that wait again; none if there was one slot only.
        """
        if self.slots == 1:
            return []
        self._slots.halve(len(self.running))
        evicted = self.running[self.slots :]
        for sequence in evicted:
            self.remove(sequence)
            self.add(sequence)
        return evicted


def _chunk(sequence: Sequence, room: int) -> Chunk:
    return Chunk(sequence, sequence.cached, min(len(sequence), sequence.cached + room))
