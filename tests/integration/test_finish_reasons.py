"""How generations end: cancels, deadlines, a full context, and closing the engine."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.pipeline import Role, Sampling
from tests.conftest import load_models
from tests.integration.batches import CONTEXT, make, same, submitted_together
from worker.engine.batching.engine import BatchingEngine
from worker.engine.batching.runner_setup import RunnerOptions
from worker.engine.interface import (
    ContextExceededError,
    EngineError,
    FinishReason,
    Request,
)
from worker.engine.reference import ReferenceEngine


@pytest.fixture(scope="module")
def endless_engine(endless: Path, tokenizer: Any, paged: bool) -> Iterator[BatchingEngine]:
    engine = BatchingEngine.from_models(
        load_models(endless),
        tokenizer,
        RunnerOptions(max_model_len=4096, max_num_seqs=2, max_num_batched_tokens=64, paged=paged),
    )
    yield engine
    engine.close()


def test_a_cancel_ends_a_text_within_a_step(endless_engine: BatchingEngine) -> None:
    generation = endless_engine.submit(Request(Role.ACTOR, "Why", Sampling(max_output_tokens=4000)))
    next(iter(generation))
    generation.cancel()
    steps = endless_engine.num_steps
    completion = generation.result(timeout=60)
    assert endless_engine.num_steps - steps <= 1, "the one that had begun"
    assert completion.finish_reason == FinishReason.CANCELLED
    assert 0 < completion.output_tokens < 4000


def test_a_cancel_while_waiting_runs_no_step(endless_engine: BatchingEngine) -> None:
    long = Sampling(max_output_tokens=4000)
    running = [endless_engine.submit(Request(Role.CRITIC, "Why", long)) for _ in range(2)]
    for generation in running:
        next(iter(generation))
    waiting = endless_engine.submit(Request(Role.ACTOR, "Why", long))
    waiting.cancel()
    assert waiting.result(timeout=60).output_tokens == 0
    for generation in running:
        generation.cancel()
        assert generation.result(timeout=60).finish_reason == FinishReason.CANCELLED


def test_a_cancel_during_prefill_ends_the_request(
    checkpoint: Path, tokenizer: Any, paged: bool
) -> None:
    engine = make(checkpoint, tokenizer, max_num_batched_tokens=16, paged=paged)
    submitted = threading.Event()
    plans: list[Any] = []
    runner: Any = engine._runner
    launch = runner.launch

    def cancelled_in_the_second_step(plan: Any) -> Any:
        submitted.wait(60)
        plans.append(plan)
        if len(plans) == 2:
            generation.cancel()
        return launch(plan)

    runner.launch = cancelled_in_the_second_step  # to be there
    generation = engine.submit(Request(Role.ACTOR, "gravity " * 100, Sampling(temperature=0)))
    submitted.set()
    completion = generation.result(timeout=60)
    engine.close()
    assert (completion.finish_reason, completion.text) == (FinishReason.CANCELLED, "")
    assert completion.first_token_at is None
    assert len(plans) == 2


def test_a_cancel_keeps_the_tokens_read_before_it(
    checkpoint: Path, tokenizer: Any, reference: ReferenceEngine
) -> None:
    """The token of the step in flight is dropped, and a later request with the same prompt gets the right text."""
    engine = make(checkpoint, tokenizer, paged=True)
    runner: Any = engine._runner
    launch = runner.launch
    request = Request(Role.CRITIC, "gravity " * 40, Sampling(temperature=0, max_output_tokens=60))
    submitted = threading.Event()
    steps: list[Any] = []

    def launching(plan: Any) -> Any:
        launched = launch(plan)
        submitted.wait(60)
        if request is generation.request and launched.sampled_sequences:
            steps.append(launched)
            if len(steps) == 7:
                generation.cancel()
        return launched

    runner.launch = launching
    generation = engine.submit(request)
    submitted.set()
    cancelled = generation.result(timeout=60)
    runner.launch = launch
    uncancelled = engine.submit(request).result(timeout=60)
    engine.close()
    assert cancelled.finish_reason is FinishReason.CANCELLED
    # Six were read when the seventh step was launched.
    assert cancelled.output_tokens == 6
    assert len(steps) == 7
    assert uncancelled.text.startswith(cancelled.text)
    assert same(uncancelled, reference.submit(request).result())


def test_a_deadline_ends_a_text_within_a_step(endless_engine: BatchingEngine) -> None:
    runner: Any = endless_engine._runner
    launch = runner.launch
    launched_at: list[float] = []

    def launching(plan: Any) -> Any:
        launched_at.append(time.monotonic())
        return launch(plan)

    runner.launch = launching
    deadline = time.monotonic() + 0.3
    request = Request(Role.ACTOR, "Why", Sampling(max_output_tokens=4000), deadline)
    completion = endless_engine.submit(request).result(timeout=60)
    runner.launch = launch
    assert completion.finish_reason == FinishReason.DEADLINE
    assert sum(at > deadline for at in launched_at) <= 1, "the one that was about to begin"
    late = Request(Role.ACTOR, "Why", Sampling(), time.monotonic() - 1)
    assert endless_engine.submit(late).result(timeout=60).output_tokens == 0


def test_later_stages_get_slots_first(checkpoint: Path, tokenizer: Any, paged: bool) -> None:
    engine = make(checkpoint, tokenizer, max_num_seqs=1, paged=paged)
    with submitted_together(engine):
        generations = [
            engine.submit(Request(Role.ACTOR, "Why " * 30, Sampling(temperature=0), priority=p))
            for p in (0, 0, 2, 1)
        ]
    began = [generation.result().first_token_at or 0 for generation in generations]
    engine.close()
    assert 0 < began[2] < began[3] < began[1]


def test_requests_that_do_not_fit_the_context_are_refused(engine: BatchingEngine) -> None:
    with pytest.raises(ContextExceededError, match=f"context of {CONTEXT}"):
        engine.submit(Request(Role.ACTOR, "gravity " * 400, Sampling()))
    long = engine.submit(Request(Role.ACTOR, "gravity " * 100, Sampling(temperature=0)))
    assert long.result().max_output_tokens == CONTEXT - long.result().prompt_tokens


def test_closing_ends_everything(endless: Path, tokenizer: Any, paged: bool) -> None:
    engine = BatchingEngine.from_models(
        load_models(endless),
        tokenizer,
        RunnerOptions(max_model_len=4096, max_num_seqs=1, paged=paged),
    )
    generations = [
        engine.submit(Request(Role.ACTOR, "Why", Sampling(max_output_tokens=4000)))
        for _ in range(3)
    ]
    next(iter(generations[0]))
    engine.close()
    for generation in generations:
        with pytest.raises(EngineError, match="the engine was closed"):
            generation.result(timeout=0)
