"""The scheduler under random traffic: no leaks, no starvation, and no sequence reads another's cache."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.engine.sequences import (
    CONTEXT,
    WEIGHTS,
    BlockCache,
    Driver,
    RowCache,
    sequence,
    token_at,
)
from worker.engine.batching.scheduler import Scheduler
from worker.engine.batching.sequence import PENDING_TOKEN
from worker.engine.kv.block_manager import BlockManager
from worker.engine.kv.row_manager import RowManager

#: Tokens of a block, and the minimum number of blocks for a context.
SIZE = 4
FEWEST = CONTEXT // SIZE + 1

#: Steps between arrivals, prompt, adapter, new tokens, those until the text ends, priority, the step of
#: a cancel or None, and whether that is a failure.
traffic = st.lists(
    st.tuples(
        st.integers(0, 4),
        st.one_of(
            st.integers(1, 40).map(lambda length: [7] * length),
            st.lists(st.integers(0, 1), min_size=1, max_size=40),
        ),
        st.integers(0, 2),
        st.integers(1, 12),
        st.integers(1, 12),
        st.integers(0, 2),
        st.one_of(st.none(), st.integers(0, 30)),
        st.booleans(),
    ),
    min_size=1,
    max_size=40,
)


def serve(arrivals: list[Any], driver: Driver, shrinks: list[int]) -> int:
    """Serve all sequences; return the number of preemptions."""
    coming = []
    at = 0
    for gap, prompt, adapter, limit, end, priority, cancel, damaged in arrivals:
        at += gap
        s = sequence(prompt, limit, priority, adapter)
        driver.ends[s] = end
        coming.append((at, cancel, damaged, s))
    # A generous bound: sequences run one by one, and restart at each arrival or end.
    work = sum(len(s.prompt_token_ids) + 2 * s.max_output_tokens for *_, s in coming)
    evicted = 0
    for step in range(at + 32 + (len(shrinks) + len(coming)) * work):
        for when, *_, s in coming:
            if when == step:
                driver.scheduler.add(s)
        for when, cancel, damaged, s in coming:
            if cancel is not None and when + cancel == step:
                driver.remove(s, invalid_kv=damaged)
        if step in shrinks:
            driver.scheduler.reduce_seqs()
        evicted += len(driver.step().preempted)
        if step > at + 32 and len(driver.done) == len(coming):
            break
    assert len(driver.done) == len(coming), "no sequence starves"
    assert not driver.scheduler.running
    assert not driver.scheduler.waiting
    for *_, s in coming:
        assert (
            s.output_token_ids == [token_at(s, i) for i in range(len(s.output_token_ids))]
            or s.output_token_ids[-1] == PENDING_TOKEN
        )
    return evicted


@settings(max_examples=200, deadline=None)
@given(
    traffic,
    st.integers(1, 6),
    st.integers(0, 2),
    st.integers(1, 16),
    st.lists(st.integers(0, 60), max_size=2),
    st.booleans(),
)
def test_random_traffic_is_served_from_rows(
    arrivals: list[Any], slots: int, spare: int, chunk: int, shrinks: list[int], late: bool
) -> None:
    manager = RowManager(slots + spare, max_model_len=CONTEXT, num_adapters=3)
    cache = RowCache(slots + spare, manager)
    driver = Driver(Scheduler(slots, chunk, manager), cache, late=late)
    assert not serve(arrivals, driver, shrinks)
    cache.check_all_free()


@settings(max_examples=300, deadline=None)
@given(
    traffic,
    st.integers(1, 8),
    st.integers(0, 2),
    st.integers(1, 16),
    st.lists(st.integers(0, 60), max_size=2),
    st.booleans(),
    st.integers(0, 60),
)
def test_random_traffic_is_served_from_blocks(
    arrivals: list[Any],
    slots: int,
    spare: int,
    chunk: int,
    shrinks: list[int],
    late: bool,
    extra: int,
) -> None:
    count = FEWEST + extra
    manager = BlockManager(
        count, SIZE, num_rows=slots + spare, max_model_len=CONTEXT, adapter_keys=WEIGHTS
    )
    cache = BlockCache(count, SIZE, manager)
    driver = Driver(Scheduler(slots, chunk, manager), cache, late=late)
    serve(arrivals, driver, shrinks)
    cache.check_all_free()


@pytest.mark.parametrize("late", [False, True])
def test_sequences_that_outgrow_the_cache_all_finish(late: bool) -> None:
    """Sequences are preempted many times, and all get the same texts as alone."""
    manager = BlockManager(FEWEST, SIZE, num_rows=8, max_model_len=CONTEXT, adapter_keys=WEIGHTS)
    cache = BlockCache(FEWEST, SIZE, manager)
    driver = Driver(Scheduler(8, 16, manager), cache, late=late)
    arrivals = [(0, [n % 2] * (3 + n % 5), n % 3, 40, 40, 0, None, False) for n in range(24)]
    assert serve(arrivals, driver, []) > 10
    assert all(len(s.output_token_ids) == 40 for s in driver.done)
    cache.check_all_free()


@pytest.mark.parametrize("late", [False, True])
def test_a_preempted_sequence_goes_before_later_arrivals(late: bool) -> None:
    """Also before sequences that were waiting when it was preempted."""
    manager = BlockManager(FEWEST, SIZE, num_rows=2, max_model_len=CONTEXT, adapter_keys=WEIGHTS)
    driver = Driver(Scheduler(2, 64, manager), BlockCache(FEWEST, SIZE, manager), late=late)
    driver.scheduler.add(sequence([7] * 28, 20))
    driver.scheduler.add(second := sequence([8] * 28, 20))
    driver.step()
    driver.scheduler.add(later := sequence([9], 1))
    driver.scheduler.add(urgent := sequence([9], 1, priority=1))
    while not (plan := driver.step()).preempted:
        pass
    assert plan.preempted == [second]
    let_in = []
    while len(driver.done) < 4:
        let_in += [c.sequence for c in driver.step().prefills]
    assert let_in == [urgent, second, later]
    assert second.output_token_ids == [token_at(second, i) for i in range(20)]


def test_a_sequence_is_not_recomputed_before_its_last_token_is_read() -> None:
    scheduler = Scheduler(2, 64, RowManager(2, max_model_len=CONTEXT, num_adapters=1))
    first, second = sequence([7]), sequence([8])
    for s in (first, second):
        scheduler.add(s)
    scheduler.on_step_launched(scheduler.schedule())
    first.output_token_ids, second.output_token_ids = [PENDING_TOKEN], [PENDING_TOKEN]
    assert scheduler.reduce_seqs() == [second]
    scheduler.remove(first)
    assert not scheduler.schedule()
    second.output_token_ids = [5]
    [chunk] = scheduler.schedule().prefills
    assert chunk.sequence.slice(chunk.start, chunk.end) == [8, 5]


def test_the_lowest_priority_is_preempted() -> None:
    manager = BlockManager(FEWEST, SIZE, num_rows=3, max_model_len=CONTEXT, adapter_keys=WEIGHTS)
    driver = Driver(Scheduler(3, 64, manager), BlockCache(FEWEST, SIZE, manager))
    low, high = sequence([7] * 28, 20), sequence([8] * 28, 20, priority=1)
    driver.scheduler.add(low)
    driver.step()
    driver.scheduler.add(high)
    while not (plan := driver.step()).preempted:
        pass
    assert plan.preempted == [low]
    assert driver.scheduler.running == [high]


def test_a_sequence_whose_last_token_is_in_flight_is_not_scheduled() -> None:
    driver = Driver(
        Scheduler(1, 8, RowManager(1, max_model_len=CONTEXT, num_adapters=1)), late=True
    )
    driver.scheduler.add(s := sequence([7], 2))
    assert [bool(driver.step()) for _ in range(3)] == [True, True, False]
    assert driver.done == [s]
    assert s.output_token_ids == [token_at(s, 0), token_at(s, 1)]


def test_higher_priority_goes_first_then_the_order_of_arrival() -> None:
    scheduler = Scheduler(1, 8, RowManager(1, max_model_len=CONTEXT, num_adapters=3))
    waiting = [sequence([7], 1, priority) for priority in (0, 2, 0, 2, 1)]
    for s in waiting:
        scheduler.add(s)
    served = []
    while scheduler.schedule():
        [running] = scheduler.running
        served.append(waiting.index(running))
        scheduler.remove(running)
    assert served == [1, 3, 4, 0, 2]


def test_a_long_prompt_does_not_block_decoding() -> None:
    """A step has nine tokens. Decoding sequences get theirs first."""
    scheduler = Scheduler(2, 9, RowManager(2, max_model_len=2 * CONTEXT, num_adapters=3))
    quick, long = sequence([7] * 2, 100), sequence([8] * 80, 1)
    scheduler.add(quick)
    scheduler.on_step_launched(scheduler.schedule())
    quick.output_token_ids = [1]
    scheduler.add(long)
    for _ in range(10):
        plan = scheduler.schedule()
        assert plan.decodes == [quick]
        [chunk] = plan.prefills
        assert chunk.end - chunk.start == 8
        scheduler.on_step_launched(plan)
        quick.output_token_ids = [*quick.output_token_ids, 1]
    assert chunk.is_last
