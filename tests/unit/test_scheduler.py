"""The scheduler under random traffic: no slot leaks, nobody starves, order is kept."""

from __future__ import annotations

from typing import Any, cast

from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.pipeline import Role, Sampling
from worker.engine.detokenizer import Detokenizer
from worker.engine.interface import Generation, Request
from worker.engine.scheduler import Plan, Scheduler, Sequence

#: Steps between arrivals, prompt tokens, new tokens, priority, and the step of a cancel or None.
traffic = st.lists(
    st.tuples(
        st.integers(0, 4),
        st.integers(1, 40),
        st.integers(1, 12),
        st.integers(0, 2),
        st.one_of(st.none(), st.integers(0, 30)),
    ),
    min_size=1,
    max_size=40,
)


def sequence(prompt: int, limit: int, priority: int) -> Sequence:
    generation = Generation(Request(Role.ACTOR, "", Sampling(), priority=priority))
    return Sequence(generation, [7] * prompt, limit, 0, cast("Detokenizer", None))


def check(plan: Plan, scheduler: Scheduler) -> None:
    slots = [s.slot for s in scheduler.running]
    assert None not in slots
    assert len(set(slots)) == len(slots) <= scheduler.slots
    assert sum(c.end - c.start for c in plan.chunks) <= scheduler.chunk
    order = [s.slot for s in plan.decoding]
    assert order == sorted(order, key=lambda slot: -1 if slot is None else slot)
    assert set(plan.decoding) == {s for s in scheduler.running if s.decoding}
    assert not {c.sequence for c in plan.chunks} & set(plan.decoding)
    assert plan or not scheduler.running


@settings(max_examples=200, deadline=None)
@given(traffic, st.integers(1, 6), st.integers(1, 16), st.lists(st.integers(0, 60), max_size=2))
def test_random_traffic_is_served(
    arrivals: list[Any], slots: int, chunk: int, shrinks: list[int]
) -> None:
    scheduler = Scheduler(slots, chunk)
    coming = []
    at = 0
    for gap, prompt, limit, priority, cancel in arrivals:
        at += gap
        coming.append((at, cancel, sequence(prompt, limit, priority)))
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
            s.cached += 1
        for c in plan.chunks:
            assert c.start == c.sequence.cached
            assert len(c.sequence.slice(c.start, c.end)) == c.end - c.start
            c.sequence.cached = c.end
        for s in [*plan.decoding, *(c.sequence for c in plan.chunks if c.last)]:
            s.tokens.append(len(s.tokens))
            if len(s.tokens) == s.limit:
                scheduler.remove(s)
                done.append(s)
    assert len(done) == len(coming), "nobody starves"
    assert not scheduler.running
    assert not scheduler.waiting
    assert sorted(scheduler._free) == list(range(slots)), "no slot leaks"


def test_higher_priority_goes_first_then_the_order_of_arrival() -> None:
    scheduler = Scheduler(1, 8)
    waiting = [sequence(1, 1, priority) for priority in (0, 2, 0, 2, 1)]
    for s in waiting:
        scheduler.add(s)
    served = []
    while scheduler.plan():
        [running] = scheduler.running
        served.append(waiting.index(running))
        scheduler.remove(running)
    assert served == [1, 3, 4, 0, 2]


def test_a_long_prompt_does_not_stop_the_others() -> None:
    scheduler = Scheduler(2, 8)
    quick, long = sequence(2, 100, 0), sequence(80, 1, 0)
    scheduler.add(quick)
    scheduler.plan()
    quick.cached, quick.tokens = 2, [1]
    scheduler.add(long)
    for _ in range(10):
        plan = scheduler.plan()
        assert plan.decoding == [quick]
        [chunk] = plan.chunks
        assert chunk.end - chunk.start == 8
        long.cached = chunk.end
        quick.cached, quick.tokens = quick.cached + 1, [*quick.tokens, 1]
    assert chunk.last
