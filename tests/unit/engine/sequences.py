"""Sequences, their expected texts, and fake caches that check who holds what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable
from typing import Protocol, cast

import numpy as np

from jobs.pipeline import Role, Sampling
from worker.engine.batching.scheduler import Scheduler
from worker.engine.batching.scheduler_output import SchedulerOutput
from worker.engine.batching.sequence import PENDING_TOKEN, UNALLOCATED, Sequence
from worker.engine.interface import Generation, Request
from worker.engine.kv.block_manager import BlockManager
from worker.engine.kv.row_manager import RowManager
from worker.engine.tokenization.detokenizer import Detokenizer

CONTEXT = 64
#: The weights of each adapter; two are equal.
WEIGHTS = ["red", "blue", "red"]


def sequence(prompt: list[int], limit: int = 9, priority: int = 0, adapter: int = 0) -> Sequence:
    generation = Generation(Request(Role.ACTOR, "", Sampling(), priority=priority))
    return Sequence(generation, prompt, limit, adapter, cast("Detokenizer", None))


def token_at(sequence: Sequence, index: int) -> int:
    """Return the token that a sequence samples at an index, whenever it is computed."""
    return (index * index + len(sequence.prompt_token_ids)) % 2


def content(sequence: Sequence, end: int, adapter: Hashable) -> list[int]:
    """Return fake keys and values of the first tokens. Each depends on all tokens before it."""
    tokens = [
        *sequence.prompt_token_ids,
        *(token_at(sequence, i) for i in range(len(sequence.output_token_ids))),
    ]
    hashes = [hash(adapter)]
    for token in tokens[:end]:
        hashes.append(hash((hashes[-1], token)))
    return hashes[1:]


def pieces(plan: SchedulerOutput) -> list[tuple[Sequence, int, int]]:
    """Return what a step computes: sequence, start and end."""
    decoding = [(s, s.num_computed_tokens, s.num_computed_tokens + 1) for s in plan.decodes]
    return decoding + [(c.sequence, c.start, c.end) for c in plan.prefills]


class Cache(Protocol):
    """A fake KV cache."""

    def compute(self, plan: SchedulerOutput, running: Iterable[Sequence]) -> None:
        """Compute a step as a device would. Every sequence must find its own keys and values."""

    def damage(self, sequence: Sequence, *, shared: bool) -> None:
        """Damage the memory of a sequence that is about to be removed, with or without what it shares."""

    def check_all_free(self) -> None:
        """Check that all memory is free."""


class RowCache:
    """A fake cache of rows."""

    def __init__(self, rows: int, manager: RowManager) -> None:
        self._rows: list[list[int | None]] = [[None] * CONTEXT for _ in range(rows)]
        self._manager = manager

    def compute(self, plan: SchedulerOutput, running: Iterable[Sequence]) -> None:
        for row in self._manager.take_rows_to_zero():
            self._rows[row] = [0] * CONTEXT
        for place in self._manager.take_copies():
            self._rows[place.row][: place.num_cached_tokens] = self._rows[place.source_row][
                : place.num_cached_tokens
            ]
        for s, start, end in pieces(plan):
            expected = content(s, end, s.adapter_id)
            self._rows[s.row][start:end] = expected[start:]
            assert self._rows[s.row][:end] == expected
        assert self._manager.num_free_blocks == len(self._rows) - len(list(running))

    def damage(self, sequence: Sequence, *, shared: bool) -> None:  # noqa: ARG002  # rows are not shared
        self._rows[sequence.row] = [None] * CONTEXT

    def check_all_free(self) -> None:
        assert self._manager.num_free_blocks == len(self._rows)


class BlockCache:
    """A fake paged cache, whose copy of the block tables is updated from their changes."""

    def __init__(self, count: int, size: int, manager: BlockManager) -> None:
        self._blocks: list[list[int | None]] = [[None] * size for _ in range(count)]
        self._size = size
        self._manager = manager
        self._table = np.zeros_like(manager.block_tables)
        #: Blocks that were damaged while others shared them, and the number of these holders.
        self._damaged: dict[int, int] = {}
        #: Who has computed each block.
        self._writers: dict[int, Sequence] = {}

    def compute(self, plan: SchedulerOutput, running: Iterable[Sequence]) -> None:
        indices, values = self._manager.table_updates()
        self._manager.on_tables_updated()
        assert indices.dtype == values.dtype == np.int64
        self._table.reshape(-1)[indices] = values
        assert (self._table == self._manager.block_tables).all()
        ref_counts = Counter(self._table[self._table > 0].tolist())
        assert len(ref_counts) + self._manager.num_free_blocks == len(self._blocks) - 1, (
            "no block leaks"
        )
        for block, holders in list(self._damaged.items()):
            assert ref_counts[block] <= holders, "damaged blocks get no new holders"
            self._damaged[block] = ref_counts[block]
            if not ref_counts[block]:
                del self._damaged[block]
        rows = {s.row for s in running}
        assert not self._table[[row not in rows for row in range(len(self._table))]].any()
        for s, start, end in pieces(plan):
            expected = content(s, end, WEIGHTS[s.adapter_id])
            table = self._table[s.row]
            for at in range(start, end):
                block = int(table[at // self._size])
                assert block > 0, "block 0 is never allocated"
                assert ref_counts[block] == 1, "shared blocks are not written"
                self._blocks[block][at % self._size] = expected[at]
                self._writers[block] = s
            cached = [self._blocks[table[at // self._size]][at % self._size] for at in range(end)]
            assert cached == expected

    def damage(self, sequence: Sequence, *, shared: bool) -> None:
        for block in self._manager.block_tables[sequence.row]:
            if not shared and self._writers.get(int(block)) is not sequence:
                continue
            other_holders = int(np.count_nonzero(self._manager.block_tables == block)) - 1
            if block and other_holders:
                self._damaged[int(block)] = other_holders
            elif block:
                self._blocks[block] = [None] * self._size

    def check_all_free(self) -> None:
        assert self._manager.num_free_blocks == len(self._blocks) - 1
        assert not self._manager.block_tables.any()


class Driver:
    """Runs sequences as an engine does. Tokens are read at once, or after the next step is launched."""

    def __init__(
        self, scheduler: Scheduler, cache: Cache | None = None, *, late: bool = False
    ) -> None:
        self.scheduler = scheduler
        self._cache = cache
        self._late = late
        #: Sequence and index of the tokens that are sampled but not read.
        self._in_flight: list[tuple[Sequence, int]] = []
        #: The number of tokens after which a sequence stops before its limit.
        self.ends: dict[Sequence, int] = {}
        self.done: list[Sequence] = []

    def step(self) -> SchedulerOutput:
        """Schedule and compute a step, and end sequences that have all their tokens."""
        before = [s for s in self.scheduler.running if not s.at_max_output_tokens]
        plan = self.scheduler.schedule()
        self._check(plan, before)
        if self._cache:
            self._cache.compute(plan, self.scheduler.running)
        self.scheduler.on_step_launched(plan)
        drawing = [*plan.decodes, *(c.sequence for c in plan.prefills if c.is_last)]
        launched = [(s, len(s.output_token_ids)) for s in drawing]
        for s in drawing:
            s.output_token_ids.append(PENDING_TOKEN)
        if self._late:
            launched, self._in_flight = self._in_flight, launched
        for s, index in launched:
            self._read(s, index)
        return plan

    def remove(self, sequence: Sequence, *, invalid_kv: bool = False) -> None:
        """End a sequence in any state."""
        if sequence in self.done:
            return
        if (
            self._cache
            and sequence.row != UNALLOCATED
            and (invalid_kv or not sequence.prompt_is_verified)
        ):
            self._cache.damage(sequence, shared=invalid_kv)
        self.scheduler.remove(sequence, invalid_kv=invalid_kv)
        self.done.append(sequence)

    def _read(self, s: Sequence, index: int) -> None:
        if s in self.done:
            return
        assert s.output_token_ids[index] == PENDING_TOKEN
        s.output_token_ids[index] = token_at(s, index)
        if index + 1 == min(s.max_output_tokens, self.ends.get(s, s.max_output_tokens)):
            del s.output_token_ids[index + 1 :]  # tokens computed beyond the end
            self.remove(s)

    def _check(self, plan: SchedulerOutput, before: list[Sequence]) -> None:
        scheduler = self.scheduler
        rows = [s.row for s in scheduler.running]
        assert UNALLOCATED not in rows
        assert len(set(rows)) == len(rows) <= scheduler.max_num_seqs
        assert plan.num_prefill_tokens <= scheduler.max_num_batched_tokens
        order = [(s.adapter_id, s.row) for s in plan.decodes]
        assert order == sorted(order)
        chunked = [c.sequence for c in plan.prefills]
        assert len({*plan.decodes, *chunked}) == len(plan.decodes) + len(chunked)
        assert {s for s in before if s.is_decoding} - set(plan.preempted) == set(plan.decodes)
        assert plan or not scheduler.running or self._in_flight
        for c in plan.prefills:
            assert c.start == c.sequence.num_computed_tokens < c.end <= len(c.sequence)
            assert PENDING_TOKEN not in c.sequence.slice(c.start, c.end)
        for s in plan.preempted:
            assert s in scheduler.waiting
        new = [s for s in chunked if s not in before]
        assert not (new and plan.preempted), "no sequence is admitted in a step that preempts"
        ranks = [
            (-s.generation.request.priority, s.arrival_index or 0)
            for s in (*new, *scheduler.waiting)
        ]
        admitted, not_admitted = ranks[: len(new)], ranks[len(new) :]
        assert not (admitted and not_admitted) or max(admitted) < min(not_admitted), (
            "priorities and arrival order are kept"
        )
