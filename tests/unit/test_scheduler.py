"""The scheduler under random traffic: no row leaks, nobody starves, nobody reads another's text."""

from __future__ import annotations

from typing import Any, cast

from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.pipeline import Role, Sampling
from worker.engine.detokenizer import Detokenizer
from worker.engine.interface import Generation, Request
from worker.engine.scheduler import NOWHERE, Plan, Scheduler, Sequence

CONTEXT = 64
#: Steps between arrivals, prompt, adapter, new tokens, priority, and the step of a cancel or None.
traffic = st.lists(
    st.tuples(
        st.integers(0, 4),
        st.one_of(
            st.integers(1, 40).map(lambda length: [7] * length),
            st.lists(st.integers(0, 1), min_size=1, max_size=40),
        ),
        st.integers(0, 2),
        st.integers(1, 12),
        st.integers(0, 2),
        st.one_of(st.none(), st.integers(0, 30)),
    ),
    min_size=1,
    max_size=40,
)


def sequence(prompt: list[int], limit: int, priority: int, adapter: int = 0) -> Sequence:
    generation = Generation(Request(Role.ACTOR, "", Sampling(), priority=priority))
    return Sequence(generation, prompt, limit, adapter, cast("Detokenizer", None))


class Cache:
    """Stands in for keys and values: which adapter and token each place was computed from."""

    def __init__(self, rows: int) -> None:
        self.rows: list[list[Any]] = [[None] * CONTEXT for _ in range(rows)]

    def compute(self, plan: Plan) -> None:
        for place in plan.copies:
            self.rows[place.row][: place.length] = self.rows[place.source][: place.length]
        pieces = [(s, s.cached, s.cached + 1) for s in plan.decoding]
        pieces += [(c.sequence, c.start, c.end) for c in plan.chunks]
        for s, start, end in pieces:
            self.rows[s.row][start:end] = [(s.adapter, token) for token in s.slice(start, end)]
            whole = [(s.adapter, token) for token in s.slice(0, end)]
            assert self.rows[s.row][:end] == whole, (
                "it reads its own keys and values, and no other's"
            )


def check(plan: Plan, scheduler: Scheduler) -> None:
    rows = [s.row for s in scheduler.running]
    assert NOWHERE not in rows
    assert len(set(rows)) == len(rows) <= scheduler.slots
    assert sum(c.end - c.start for c in plan.chunks) <= scheduler.chunk
    order = [(s.adapter, s.row) for s in plan.decoding]
    assert order == sorted(order)
    assert set(plan.decoding) == {s for s in scheduler.running if s.decoding}
    assert not {c.sequence for c in plan.chunks} & set(plan.decoding)
    assert plan or not scheduler.running


@settings(max_examples=200, deadline=None)
@given(
    traffic,
    st.integers(1, 6),
    st.integers(0, 2),
    st.integers(1, 16),
    st.lists(st.integers(0, 60), max_size=2),
)
def test_random_traffic_is_served(
    arrivals: list[Any], slots: int, spare: int, chunk: int, shrinks: list[int]
) -> None:
    scheduler = Scheduler(slots, chunk, rows=slots + spare, context=CONTEXT, adapters=3)
    cache = Cache(slots + spare)
    coming = []
    at = 0
    for gap, prompt, adapter, limit, priority, cancel in arrivals:
        at += gap
        coming.append((at, cancel, sequence(prompt, limit, priority, adapter)))
    done: list[Sequence] = []
    # A generous bound: every prompt and every new token one after the other, and again per shrink.
    work = sum(len(s.prompt) + 2 * s.limit for _, _, s in coming)
    for step in range(at + 32 + (len(shrinks) + 1) * work):
        for when, _, arrived in coming:
            if when == step:
                scheduler.add(arrived)
        for when, cancel, arrived in coming:
            if cancel is not None and when + cancel == step and arrived not in done:
                scheduler.remove(arrived)
                done.append(arrived)
        if step in shrinks:
            scheduler.shrink()
        plan = scheduler.plan()
        check(plan, scheduler)
        for s in plan.decoding:
            assert s.slice(s.cached, s.cached + 1) == [s.tokens[-1]]
        for c in plan.chunks:
            assert c.start == c.sequence.cached < c.end
            assert len(c.sequence.slice(c.start, c.end)) == c.end - c.start
        cache.compute(plan)
        scheduler.computed(plan)
        for s in [*plan.decoding, *(c.sequence for c in plan.chunks if c.last)]:
            s.tokens.append(len(s.tokens))
            if len(s.tokens) == s.limit:
                scheduler.remove(s)
                done.append(s)
    assert len(done) == len(coming), "nobody starves"
    assert not scheduler.running
    assert not scheduler.waiting
    assert sorted(scheduler._free) == list(range(slots + spare)), "no row leaks"


def test_higher_priority_goes_first_then_the_order_of_arrival() -> None:
    scheduler = Scheduler(1, 8, rows=1, context=CONTEXT, adapters=3)
    waiting = [sequence([7], 1, priority) for priority in (0, 2, 0, 2, 1)]
    for s in waiting:
        scheduler.add(s)
    served = []
    while scheduler.plan():
        [running] = scheduler.running
        served.append(waiting.index(running))
        scheduler.remove(running)
    assert served == [1, 3, 4, 0, 2]


def test_a_long_prompt_does_not_stop_the_others() -> None:
    scheduler = Scheduler(2, 8, rows=2, context=2 * CONTEXT, adapters=3)
    quick, long = sequence([7] * 2, 100, 0), sequence([8] * 80, 1, 0)
    scheduler.add(quick)
    scheduler.computed(scheduler.plan())
    quick.tokens = [1]
    scheduler.add(long)
    for _ in range(10):
        plan = scheduler.plan()
        assert plan.decoding == [quick]
        [chunk] = plan.chunks
        assert chunk.end - chunk.start == 8
        scheduler.computed(plan)
        quick.tokens = [*quick.tokens, 1]
    assert chunk.last


def test_a_prompt_takes_over_what_another_ones_begins_with() -> None:
    scheduler = Scheduler(3, 64, rows=3, context=CONTEXT, adapters=3)
    system = list(range(20))
    scheduler.add(first := sequence([*system, 50], 9, 0))
    scheduler.computed(scheduler.plan())
    first.tokens = [1]
    scheduler.add(second := sequence([*system, 60, 61], 9, 0))
    scheduler.add(sequence([*system, 60], 9, 0, adapter=1))
    plan = scheduler.plan()
    assert [(c.start, c.end) for c in plan.chunks] == [(20, 22), (0, 21)]
    [copy] = plan.copies
    assert (copy.source, copy.row, copy.length) == (first.row, second.row, 20)
    scheduler.computed(plan)
    for s in scheduler.running:
        s.tokens = [*s.tokens, 1]
    scheduler.remove(second)
    scheduler.add(sequence([*system, 60, 62], 9, 0))
    plan = scheduler.plan()
    assert [(c.start, c.end) for c in plan.chunks] == [(21, 22)]
    assert not plan.copies, "it is put where the longest beginning is"


def test_a_long_prompt_that_comes_again_is_not_computed_again() -> None:
    """Whatever the order in which several of them come back."""
    scheduler = Scheduler(3, 999, rows=3, context=200, adapters=1)
    prompts = [[n] * 150 for n in range(3)]
    for _ in range(2):
        for prompt in prompts:
            scheduler.add(sequence(prompt, 1, 0))
        plan = scheduler.plan()
        scheduler.computed(plan)
        for s in list(scheduler.running):
            s.tokens.append(0)
            scheduler.remove(s)
        prompts.reverse()
    assert [(c.start, c.end) for c in plan.chunks] == [(149, 150)] * 3


def test_nothing_is_taken_over_from_a_damaged_row() -> None:
    scheduler = Scheduler(2, 64, rows=2, context=CONTEXT, adapters=3)
    scheduler.add(bad := sequence([7] * 9, 1, 0))
    scheduler.computed(scheduler.plan())
    scheduler.remove(bad, damaged=True)
    scheduler.add(sequence([7] * 9, 1, 0))
    [chunk] = scheduler.plan().chunks
    assert chunk.start == 0


def test_what_a_prompt_leaves_that_nothing_was_drawn_from_is_not_taken_over() -> None:
    """Nobody has looked whether it is numbers."""
    scheduler = Scheduler(1, 999, rows=1, context=200, adapters=1)
    for _ in range(2):
        scheduler.add(sequence([1] * 100, 1, 0))
        plan = scheduler.plan()
        scheduler.computed(plan)
        [row] = {s.row for s in scheduler.running}
        scheduler.remove(scheduler.running[0])
        assert scheduler.damaged.pop() == row
    assert [(c.start, c.end) for c in plan.chunks] == [(0, 100)]
