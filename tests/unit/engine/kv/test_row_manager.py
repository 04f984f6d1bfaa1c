"""Rows of the KV cache: which prefix a prompt reuses, and when it does not."""

from __future__ import annotations

from tests.unit.engine.sequences import CONTEXT, sequence
from worker.engine.batching.scheduler import Scheduler
from worker.engine.batching.sequence import Sequence
from worker.engine.kv.row_manager import RowManager


def test_a_prompt_reuses_the_prefix_of_another_row() -> None:
    rows = RowManager(3, max_model_len=CONTEXT, num_adapters=3)
    scheduler = Scheduler(3, 64, rows)
    system = list(range(20))
    scheduler.add(first := sequence([*system, 50]))
    scheduler.on_step_launched(scheduler.schedule())
    first.output_token_ids = [1]
    scheduler.add(second := sequence([*system, 60, 61]))
    scheduler.add(sequence([*system, 60], adapter=1))
    plan = scheduler.schedule()
    assert [(c.start, c.end) for c in plan.prefills] == [(20, 22), (0, 21)]
    [copy] = rows.take_copies()
    assert (copy.source_row, copy.row, copy.num_cached_tokens) == (first.row, second.row, 20)
    scheduler.on_step_launched(plan)
    for s in scheduler.running:
        s.output_token_ids = [*s.output_token_ids, 1]
    scheduler.remove(second)
    scheduler.add(sequence([*system, 60, 62]))
    plan = scheduler.schedule()
    assert [(c.start, c.end) for c in plan.prefills] == [(21, 22)]
    assert not rows.take_copies(), "it is allocated to the row with the longest common prefix"


def test_a_repeated_prompt_is_not_recomputed() -> None:
    """In whatever order several of them are repeated."""
    scheduler = Scheduler(3, 999, RowManager(3, max_model_len=200, num_adapters=1))
    prompts = [[n] * 150 for n in range(3)]
    for _ in range(2):
        for prompt in prompts:
            scheduler.add(sequence(prompt, 1))
        plan = scheduler.schedule()
        scheduler.on_step_launched(plan)
        for s in list(scheduler.running):
            s.output_token_ids.append(0)
            scheduler.remove(s)
        prompts.reverse()
    assert [(c.start, c.end) for c in plan.prefills] == [(149, 150)] * 3


def test_the_only_row_of_another_role_is_reused_last() -> None:
    """Otherwise that role's prompts would be computed from their beginning again, system prompt included."""
    rows = RowManager(3, max_model_len=CONTEXT, num_adapters=2)
    scheduler = Scheduler(3, 999, rows)

    def start(prompt: list[int], adapter: int) -> Sequence:
        scheduler.add(started := sequence(prompt, 1, adapter=adapter))
        plan = scheduler.schedule()
        scheduler.on_step_launched(plan)
        started.output_token_ids = [1]
        return started

    def end(*sequences: Sequence) -> None:
        for ended in sequences:
            scheduler.remove(ended)

    role = list(range(20))
    last, first, only = start([5], 1), start([6], 0), start([*role, 7], 1)
    assert (first.row, only.row, last.row) == (0, 1, 2)
    end(last)
    end(only, start([8], 0))  # in the last row
    start([9], 0)
    scheduler.add(sequence([*role, 10], adapter=1))
    [chunk] = scheduler.schedule().prefills
    assert chunk.start == len(role)


def test_a_damaged_row_is_not_reused() -> None:
    """Whether its prompt was damaged, or a token that came after others."""
    for output in ([], [1]):
        rows = RowManager(2, max_model_len=CONTEXT, num_adapters=3)
        scheduler = Scheduler(2, 64, rows)
        scheduler.add(damaged := sequence([7] * 9, 1))
        scheduler.on_step_launched(scheduler.schedule())
        damaged.output_token_ids += output
        row = damaged.row
        scheduler.remove(damaged, invalid_kv=True)
        assert rows.take_rows_to_zero() == [row]
        scheduler.add(sequence([7] * 9, 1))
        [chunk] = scheduler.schedule().prefills
        assert chunk.start == 0


def test_a_prompt_without_a_sampled_token_is_not_reused() -> None:
    """Its logits were never checked for NaN."""
    rows = RowManager(1, max_model_len=200, num_adapters=1)
    scheduler = Scheduler(1, 999, rows)
    for _ in range(2):
        scheduler.add(sequence([1] * 100, 1))
        plan = scheduler.schedule()
        scheduler.on_step_launched(plan)
        [row] = {s.row for s in scheduler.running}
        scheduler.remove(scheduler.running[0])
        assert rows.take_rows_to_zero() == [row]
    assert [(c.start, c.end) for c in plan.prefills] == [(0, 100)]


def test_without_a_free_row_nothing_is_allocated() -> None:
    rows = RowManager(1, max_model_len=CONTEXT, num_adapters=1)
    assert rows.allocate(sequence([7]))
    waiting = sequence([7])
    assert not rows.allocate(waiting)
    assert waiting.row == -1
