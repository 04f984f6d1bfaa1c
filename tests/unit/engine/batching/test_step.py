"""Executing steps: texts, drafts, and failures that hit only the sequences at fault."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from tests.unit.engine.fake_runner import CYCLE, FakeRunner, text_of, token_at
from tests.unit.engine.sequences import sequence
from worker.engine.batching.scheduler import Scheduler
from worker.engine.batching.scheduler_output import SchedulerOutput
from worker.engine.batching.sequence import PENDING_TOKEN, Sequence
from worker.engine.batching.step import NOT_FINITE, StepExecutor
from worker.engine.interface import EngineError, FinishReason
from worker.engine.kv.row_manager import RowManager
from worker.engine.speculative.drafter import Drafter

SLOTS, CONTEXT, CHUNK = 4, 64, 16


class Steps:
    """An executor with a fake runner, and how its sequences ended."""

    def __init__(self, *, drafter: Drafter | None = None, **options: Any) -> None:
        kv = RowManager(SLOTS, max_model_len=CONTEXT, num_adapters=1)
        self.runner = FakeRunner(kv, **options)
        self.scheduler = Scheduler(SLOTS, CHUNK, kv)
        self.outcomes: dict[Sequence, FinishReason | EngineError] = {}
        self.num_device_losses = 0
        self.stop_token_ids: set[int] = set()
        self.executor = StepExecutor(
            self.runner,
            self.scheduler,
            drafter=drafter,
            stop_token_ids=self.stop_token_ids,
            finish=self._finish,
            on_engine_dead=self._lose_device,
        )

    def run(self, *sequences: Sequence) -> None:
        """Add sequences, and execute steps until all have ended."""
        for added in sequences:
            self.scheduler.add(added)
        while len(self.outcomes) < len(sequences):
            self.executor.execute(self.scheduler.schedule())

    def _finish(self, finished: Sequence, outcome: FinishReason | EngineError) -> None:
        self.scheduler.remove(finished, invalid_kv=isinstance(outcome, EngineError))
        finished.finished = True
        while finished.has_pending_token:
            finished.output_token_ids.pop()
        self.outcomes[finished] = outcome

    def _lose_device(self) -> None:
        self.num_device_losses += 1


def several(count: int = SLOTS, limit: int = 9) -> list[Sequence]:
    """Return sequences with prompts of different lengths."""
    return [sequence(list(range(10, 15 + i)), limit) for i in range(count)]


def is_complete(finished: Sequence) -> bool:
    return finished.output_token_ids == text_of(finished, finished.max_output_tokens)


def messages(steps: Steps) -> set[str]:
    return {str(error) for error in steps.outcomes.values() if isinstance(error, EngineError)}


@pytest.mark.parametrize("async_scheduling", [False, True])
def test_sequences_end_at_their_limit_or_at_a_stop_token(async_scheduling: bool) -> None:
    steps = Steps(async_scheduling=async_scheduling)
    limited, stopped = several(2)
    stopped.max_output_tokens = 50
    steps.stop_token_ids.add(CYCLE[0])
    limited.max_output_tokens = text_of(limited, 9).index(CYCLE[0])
    steps.run(limited, stopped)
    assert steps.outcomes == {limited: FinishReason.LENGTH, stopped: FinishReason.STOP}
    assert is_complete(limited)
    assert stopped.output_token_ids == text_of(stopped, len(stopped.output_token_ids))
    assert stopped.output_token_ids.index(CYCLE[0]) == len(stopped.output_token_ids) - 1
    assert limited.first_token_at is not None


def test_with_async_scheduling_a_token_is_read_after_the_next_launch() -> None:
    steps = Steps(async_scheduling=True)
    [only] = several(1)
    steps.scheduler.add(only)
    steps.executor.execute(steps.scheduler.schedule())
    assert steps.executor.has_in_flight_step
    assert only.output_token_ids == [PENDING_TOKEN]
    steps.executor.execute(steps.scheduler.schedule())
    assert only.output_token_ids == [token_at(only, 0), PENDING_TOKEN]


@pytest.mark.parametrize("async_scheduling", [False, True])
def test_logits_that_are_not_finite_fail_one_sequence(async_scheduling: bool) -> None:
    sequences = several()
    steps = Steps(
        async_scheduling=async_scheduling,
        is_finite=lambda s, position: s is not sequences[1] or position != 3,
    )
    steps.run(*sequences)
    error = steps.outcomes.pop(sequences[1])
    assert str(error) == NOT_FINITE
    assert all(is_complete(s) for s in steps.outcomes)


@pytest.mark.parametrize("async_scheduling", [False, True])
def test_a_failed_step_is_repeated_one_by_one(async_scheduling: bool) -> None:
    """Whether decoding or in its prefill, only the sequence that fails alone ends."""
    sequences = several()

    def fault(output: SchedulerOutput) -> Exception | None:
        return RuntimeError("broken") if sequences[2] in output.sequences else None

    steps = Steps(async_scheduling=async_scheduling, launch_fault=fault)
    steps.run(*sequences)
    assert str(steps.outcomes.pop(sequences[2])) == "RuntimeError: broken"
    assert all(is_complete(s) for s in steps.outcomes)


@pytest.mark.parametrize("async_scheduling", [False, True])
def test_a_step_that_fails_once_fails_no_sequence(async_scheduling: bool) -> None:
    """The step before it is read, if it is in flight."""
    faults = iter([None, None, RuntimeError("once")])
    steps = Steps(async_scheduling=async_scheduling, launch_fault=lambda _: next(faults, None))
    sequences = several()
    steps.run(*sequences)
    assert all(is_complete(s) for s in sequences)


def test_an_error_at_reading_fails_the_sequences_in_flight() -> None:
    """The error is known one step late; a sequence that came later is not affected."""
    faults = iter([None, RuntimeError("late")])
    steps = Steps(async_scheduling=True, read_fault=lambda _: next(faults, None))
    first, second = several(2)
    steps.scheduler.add(first)
    for _ in range(3):
        steps.executor.execute(steps.scheduler.schedule())
    assert messages(steps) == {"RuntimeError: late"}
    steps.outcomes.clear()
    steps.run(second)
    assert is_complete(second)


def test_a_lost_device_is_reported_once() -> None:
    error = torch.AcceleratorError("CUDA error")
    faults = iter([None, error])
    steps = Steps(async_scheduling=True, read_fault=lambda _: next(faults, None))
    steps.run(*several(2))
    assert steps.num_device_losses == 1
    assert messages(steps) == {"AcceleratorError: CUDA error"}


def test_out_of_memory_shrinks_prefills_then_the_number_of_sequences() -> None:
    """Memory for 8 tokens of prompts, and for two sequences."""

    def fault(output: SchedulerOutput) -> Exception | None:
        if output.num_prefill_tokens > 8 or len(output.sequences) > 2:
            return torch.OutOfMemoryError("out of memory")
        return None

    steps = Steps(launch_fault=fault)
    sequences = several()
    steps.run(*sequences)
    assert all(is_complete(s) for s in sequences)
    assert steps.scheduler.max_num_seqs <= 2
    assert steps.scheduler.max_num_batched_tokens <= 8


def test_the_log_says_when_there_is_enough_memory_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("worker.engine.batching.adaptive_limit.BASE_BACKOFF_STEPS", 2)
    caplog.set_level(logging.INFO)
    faults = iter([None, torch.OutOfMemoryError("out of memory")])
    steps = Steps(launch_fault=lambda _: next(faults, None))
    steps.run(*several(2, 30))
    assert caplog.messages == [
        "out of memory: up to 1 sequences for now",
        "enough memory again: up to 2 sequences and 16 tokens a step",
        "enough memory again: up to 4 sequences and 16 tokens a step",
    ]


def test_a_sequence_too_large_for_memory_fails_alone() -> None:
    def fault(output: SchedulerOutput) -> Exception | None:
        is_long = any(len(s) > 12 for s in output.sequences)
        return torch.OutOfMemoryError("out of memory") if is_long else None

    steps = Steps(launch_fault=fault)
    short, long = sequence([10, 11], 6), sequence([12, 13], 20)
    steps.run(short, long)
    assert is_complete(short)
    assert str(steps.outcomes[long]) == "OutOfMemoryError: out of memory"


def test_drafts_take_fewer_steps_to_the_same_text() -> None:
    plain, drafting = Steps(), Steps(drafter=Drafter(1))
    for steps in (plain, drafting):
        steps.run(sequence([10, 11, 12], 50))
    [expected], [drafted] = plain.outcomes, drafting.outcomes
    assert drafted.output_token_ids == expected.output_token_ids
    assert drafting.executor.num_steps < 0.8 * plain.executor.num_steps
    assert drafting.executor.num_computed_tokens == plain.executor.num_computed_tokens


def test_nothing_is_drafted_or_learned_while_many_sequences_decode(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("worker.engine.batching.step.MAX_DECODES", 1)

    def num_steps(drafter: Drafter, *sequences: Sequence) -> int:
        steps = Steps(drafter=drafter)
        steps.run(*sequences)
        return steps.executor.num_steps

    first, second = Drafter(1), Drafter(1)
    many, one = num_steps(first, *several(2, 40)), num_steps(second, *several(1, 40))
    assert many == num_steps(first, *several(2, 40))
    assert one > num_steps(second, *several(1, 40))
    # What was decoded together taught nothing.
    assert one == num_steps(first, *several(1, 40))
    # What was learned from each alone is not drafted for both.
    for alone in several(2, 40):
        num_steps(second, alone)
    assert many == num_steps(second, *several(2, 40))


def test_a_draft_with_nan_continues_without_drafts() -> None:
    """The draft may be the cause: the position is computed again by itself."""
    drafted: list[Sequence] = []

    def is_finite(s: Sequence, position: int) -> bool:
        if s.draft_token_ids and position > len(s.output_token_ids):
            drafted.append(s)
            return False
        return True

    steps = Steps(drafter=Drafter(1), is_finite=is_finite)
    only = sequence([10, 11, 12], 50)
    steps.run(only)
    assert drafted
    assert is_complete(only)
    assert not only.speculation_enabled
    assert not any(output.prefills for output in steps.runner.launched[1:]), "nothing is recomputed"


def test_a_finished_sequence_ignores_its_step_in_flight() -> None:
    """A request that is cancelled while its step is computed gets no further token."""
    steps = Steps(async_scheduling=True)
    [only] = several(1)
    steps.scheduler.add(only)
    for _ in range(3):
        steps.executor.execute(steps.scheduler.schedule())
    steps._finish(only, FinishReason.CANCELLED)
    before = list(only.output_token_ids)
    steps.executor.execute(steps.scheduler.schedule())
    assert only.output_token_ids == before == text_of(only, len(before))
    assert not steps.executor.has_in_flight_step
