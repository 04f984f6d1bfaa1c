"""Which sequences run, and what the next step computes of them."""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass, field

from worker.engine.batching.adaptive_limit import Allowance
from worker.engine.batching.sequence import NOWHERE, Sequence
from worker.engine.kv.manager import KVCacheManager


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
    #: Those that wait again, since memory ran out.
    evicted: list[Sequence] = field(default_factory=list)

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
    chunk and never stops them. A sequence gets its memory in the step that computes its first chunk:
    by then others may have computed what its prompt begins with. Nobody is let in before those that
    came earlier at the same priority, however small: who needs much would wait for ever.

    Where memory runs out, the youngest sequence of the lowest priority makes room and is computed anew
    later. The noise depends on position alone, so its text is the same.

    A step may be planned while the one before is under way: `computed` is called when a step is
    launched, and a token that is not read yet stands as `worker.engine.batching.sequence.PENDING`.
    """

    def __init__(self, slots: int, chunk: int, manager: KVCacheManager) -> None:
        """
        Args:
            slots: sequences that run at once.
            chunk: the most tokens of a step that has prompts; a quarter of them is theirs, however
                many decode.
            manager: hands out memory for keys and values; to a sequence that is the only one, for as
                many tokens as it may ever have.
        """
        self._slots = Allowance(slots)
        self._chunk = Allowance(chunk)
        self._manager = manager
        #: In the order in which they were let in.
        self.running: list[Sequence] = []
        self._waiting: list[tuple[int, int, Sequence]] = []
        self._arrivals = itertools.count()

    def add(self, sequence: Sequence) -> None:
        """Let a sequence wait for a slot, at its old place if it has waited before."""
        if sequence.arrival is None:
            sequence.arrival = next(self._arrivals)
        heapq.heappush(self._waiting, (*_rank(sequence), sequence))

    @property
    def slots(self) -> int:
        """Sequences that may run at once: as many as at the beginning, or what memory carries."""
        return self._slots.now

    @property
    def chunk(self) -> int:
        """The most tokens of a step that has prompts."""
        return self._chunk.now

    @property
    def waiting(self) -> list[Sequence]:
        return [sequence for *_, sequence in self._waiting]

    def plan(self) -> Plan:
        """Choose what to compute, and let sequences in while there is room for their prompts.

        A plan may be empty while sequences run: if the last tokens of all of them are under way.
        """
        evicted = self._reserve()
        decoding: list[Sequence] = []
        reading: list[Sequence] = []  # in the order in which they came in
        for sequence in self.running:
            if not sequence.complete:
                (decoding if sequence.decoding else reading).append(sequence)
        decoding.sort(key=lambda s: (s.adapter, s.row))
        chunks: list[Chunk] = []
        room = max(self.chunk - len(decoding), self.chunk // 4, 1)
        for sequence in reading:
            if room:
                chunks.append(_chunk(sequence, room))
                room -= chunks[-1].end - chunks[-1].start
        while not evicted and len(self.running) < self.slots and room and self._let_in():
            chunks.append(_chunk(self.running[-1], room))
            room -= chunks[-1].end - chunks[-1].start
        chunks.sort(key=lambda chunk: chunk.sequence.adapter)
        return Plan(decoding, chunks, evicted)

    def _reserve(self) -> list[Sequence]:
        """See to it that those that run have memory for their next token; return who made room."""
        evicted: list[Sequence] = []
        extend = self._manager.extend
        for sequence in list(self.running):
            if sequence.complete or sequence.row == NOWHERE:
                continue
            while not extend(sequence, sequence.cached + 1):
                evicted.append(max(self.running, key=_rank))
                self._evict(evicted[-1])
                if evicted[-1] is sequence:
                    break
        return evicted

    def _let_in(self) -> bool:
        """Let the first that waits run, if there is memory for it."""
        if not self._waiting:
            return False
        *_, sequence = self._waiting[0]
        if sequence.pending or not self._manager.allocate(sequence):
            return False
        heapq.heappop(self._waiting)
        self.running.append(sequence)
        return True

    def _evict(self, sequence: Sequence) -> None:
        """Let a running sequence wait again, with the tokens that it has."""
        self.remove(sequence)
        self.add(sequence)

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
                self._manager.record(sequence, chunk.start, tokens)
        grown = self._slots.succeed(len(self.running)), self._chunk.succeed(plan.prompt_tokens)
        return any(grown)

    def remove(self, sequence: Sequence, *, damaged: bool = False) -> None:
        """Forget a sequence, wherever it is; its memory is free at once.

        Args:
            sequence: the sequence.
            damaged: whether what it leaves in the cache may be no numbers; it also may if no token was
                read yet, since the scores are what is looked at.
        """
        if sequence.row == NOWHERE:
            self._waiting = [entry for entry in self._waiting if entry[2] is not sequence]
            heapq.heapify(self._waiting)
            return
        self.running.remove(sequence)
        self._manager.release(sequence, damaged=damaged or not sequence.sound)
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
            self._evict(sequence)
        return evicted


def _rank(sequence: Sequence) -> tuple[int, int]:
    """Order sequences: who comes first is let in first, and is the last to make room."""
    assert sequence.arrival is not None  # noqa: S101 (it has waited)
    return -sequence.generation.request.priority, sequence.arrival


def _chunk(sequence: Sequence, room: int) -> Chunk:
    return Chunk(sequence, sequence.cached, min(len(sequence), sequence.cached + room))
