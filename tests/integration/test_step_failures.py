"""Failed steps: the request at fault fails, and the others continue."""

from __future__ import annotations

import random
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.pipeline import Role, Sampling
from tests.integration.batches import FEW, complete, make, request, same, submitted_together
from tests.integration.faults import before_launch, fail_reads
from tests.servers import PATIENCE
from worker.engine.batching import sampler
from worker.engine.interface import (
    Completion,
    EngineError,
    Request,
)
from worker.engine.kv.paged_cache import BLOCK_SIZE
from worker.engine.reference import ReferenceEngine

#: Seconds.
MAX_STEP = 0.5


def test_a_request_that_fails_fails_alone(
    checkpoint: Path, tokenizer: Any, reference: ReferenceEngine, paged: bool
) -> None:
    engine = make(checkpoint, tokenizer, paged=paged)
    rng = random.Random(4)
    requests = [request(rng) for _ in range(8)]
    failing = Request(Role.CRITIC, "poison", Sampling(temperature=0, max_output_tokens=20))
    poison = tokenizer.encode("poison")

    def fault(plan: Any) -> None:
        if any(
            s.prompt_token_ids == poison and len(s.output_token_ids) == 3 for s in plan.sequences
        ):
            raise RuntimeError("a bad row")

    before_launch(engine, fault)
    generations = [engine.submit(r) for r in [*requests[:4], failing, *requests[4:]]]
    with pytest.raises(EngineError, match="RuntimeError: a bad row"):
        generations.pop(4).result()
    for generation, r in zip(generations, requests, strict=True):
        assert same(generation.result(), reference.submit(r).result())
    engine.close()


def test_a_lost_device_is_reported(checkpoint: Path, tokenizer: Any, paged: bool) -> None:
    reported = threading.Event()
    engine = make(checkpoint, tokenizer, max_num_seqs=2, paged=paged, on_engine_dead=reported.set)

    def fault(_: Any) -> None:
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")

    before_launch(engine, fault)
    with pytest.raises(EngineError, match="AcceleratorError: CUDA error"):
        engine.submit(Request(Role.ACTOR, "Why", Sampling())).result(timeout=60)
    assert reported.is_set()
    engine.close()


def test_a_step_that_hangs_is_reported(checkpoint: Path, tokenizer: Any, paged: bool) -> None:
    """As a device does that raises no error. An engine without requests does not hang."""
    dead, go_on = threading.Event(), threading.Event()
    engine = make(
        checkpoint, tokenizer, paged=paged, on_engine_dead=dead.set, max_step_seconds=MAX_STEP
    )
    assert not dead.wait(2 * MAX_STEP)

    def hang(_: Any) -> None:
        go_on.wait(PATIENCE)

    before_launch(engine, hang)
    generation = engine.submit(Request(Role.ACTOR, "Why", Sampling(max_output_tokens=3)))
    assert dead.wait(PATIENCE)
    go_on.set()
    assert generation.result(PATIENCE).output_tokens == 3
    engine.close()


def test_an_error_of_the_engines_thread_is_reported(
    checkpoint: Path, tokenizer: Any, paged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller would wait for ever, and the worker would look alive."""
    dead = threading.Event()
    engine = make(checkpoint, tokenizer, paged=paged, on_engine_dead=dead.set)

    def fail(*_: Any) -> None:
        raise RuntimeError("a fault")

    monkeypatch.setattr(engine._loop, "_flush_outputs", fail)
    monkeypatch.setattr(engine._loop, "_finish", fail)
    engine.submit(Request(Role.ACTOR, "Why", Sampling(max_output_tokens=3)))
    assert dead.wait(PATIENCE)
    engine.close()


def test_an_error_in_the_engines_loop_fails_the_running_requests(
    checkpoint: Path, tokenizer: Any, paged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make(checkpoint, tokenizer, paged=paged)
    request = Request(Role.ACTOR, "gravity", Sampling(temperature=0, max_output_tokens=9))

    def fail() -> None:
        if engine._loop.scheduler.running:
            raise RuntimeError("no text")

    with monkeypatch.context() as patch:
        patch.setattr(engine._loop, "_flush_outputs", fail)
        with pytest.raises(EngineError, match="RuntimeError: no text"):
            engine.submit(request).result(timeout=60)
    assert engine.submit(request).result(timeout=60).output_tokens == 9
    engine.close()


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("out of memory"), RuntimeError("once")])
def test_an_error_during_sampling_changes_no_text(
    error: Exception,
    checkpoint: Path,
    tokenizer: Any,
    reference: ReferenceEngine,
    paged: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The step is repeated from the same state."""
    engine = make(checkpoint, tokenizer, paged=paged)
    sample = sampler.sample
    batch_sizes = []

    def fault(logits: Any, *rows: Any, **options: Any) -> Any:
        batch_sizes.append(len(logits))
        if len(batch_sizes) == 6:
            raise error
        return sample(logits, *rows, **options)

    monkeypatch.setattr(sampler, "sample", fault)
    rng = random.Random(7)
    requests = [request(rng) for _ in range(12)]
    # A step of one sequence would fail it.
    completions = complete(engine, requests)
    engine.close()
    assert len(batch_sizes) > 6
    assert all(
        same(c, reference.submit(r).result()) for c, r in zip(completions, requests, strict=True)
    )


def test_an_error_at_synchronization_fails_the_requests_in_flight(
    checkpoint: Path, tokenizer: Any, reference: ReferenceEngine
) -> None:
    """The request at fault is unknown. Waiting and later requests are not affected."""
    engine = make(checkpoint, tokenizer, max_num_seqs=4, paged=True)
    steps = iter(range(6))
    fail_reads(engine, lambda _: next(steps, None) == 5)
    rng = random.Random(9)
    first, later = ([request(rng) for _ in range(12)] for _ in range(2))
    first = [replace(r, sampling=replace(r.sampling, max_output_tokens=24)) for r in first]
    generations = [engine.submit(r) for r in first]
    completions: list[Completion | None] = []
    for generation in generations:
        try:
            completions.append(generation.result(timeout=60))
        except EngineError as error:
            assert str(error) == "RuntimeError: an illegal step"  # noqa: PT017  # some have a text
            completions.append(None)
    assert 1 <= completions.count(None) <= 4
    completions += [g.result(timeout=60) for g in [engine.submit(r) for r in later]]
    engine.close()
    for completion, r in zip(completions, [*first, *later], strict=True):
        assert completion is None or same(completion, reference.submit(r).result())


def test_a_preempted_request_does_not_wait_for_a_failed_step(
    checkpoint: Path, tokenizer: Any, reference: ReferenceEngine
) -> None:
    """Its last token will never be read."""
    engine = make(checkpoint, tokenizer, max_num_seqs=4, paged=True, num_blocks=FEW)
    failed: list[Any] = []

    def fails(plan: Any) -> bool:
        """The step before a preemption, which has the last token of the preempted sequence."""
        scheduler = engine._loop.scheduler
        free = engine._runner.kv.num_free_blocks
        due = sum(
            (s.num_computed_tokens + 1) % BLOCK_SIZE == 0
            for s in scheduler.running
            if s in plan.decodes
        )
        if not failed and due > free:
            failed.append(plan)
            return True
        return False

    fail_reads(engine, fails)
    rng = random.Random(10)
    requests = [request(rng) for _ in range(16)]
    requests = [replace(r, sampling=replace(r.sampling, max_output_tokens=60)) for r in requests]
    completions: list[Completion | None] = []
    with submitted_together(engine):
        generations = [engine.submit(r) for r in requests]
    for generation in generations:
        try:
            completions.append(generation.result(timeout=60))
        except EngineError:
            completions.append(None)
    engine.close()
    assert failed
    assert None in completions
    for completion, r in zip(completions, requests, strict=True):
        assert completion is None or same(completion, reference.submit(r).result())


def test_out_of_memory_after_an_error_fails_no_request(
    checkpoint: Path, tokenizer: Any, reference: ReferenceEngine, paged: bool
) -> None:
    """A preempted sequence waits, and is not repeated with the sequences of the failed step."""
    engine = make(checkpoint, tokenizer, paged=paged)
    errors = iter([None, None, RuntimeError("once"), torch.OutOfMemoryError("out of memory")])

    def fault(_: Any) -> None:
        if (error := next(errors, None)) is not None:
            raise error

    before_launch(engine, fault)
    rng = random.Random(8)
    requests = [request(rng) for _ in range(6)]
    # A step of one sequence would fail it.
    completions = complete(engine, requests)
    engine.close()
    assert all(
        same(c, reference.submit(r).result()) for c, r in zip(completions, requests, strict=True)
    )
