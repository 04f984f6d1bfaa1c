"""Steps that fail: one request pays for its fault, and the others go on."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.pipeline import Role, Sampling
from tests.conftest import load_model
from tests.integration.batches import CONTEXT, make, request, same
from worker.engine.batching import BatchingEngine
from worker.engine.interface import (
    EngineError,
    Request,
)
from worker.engine.reference import ReferenceEngine


class Faulty:
    """A fault put into an engine's steps: a fake, since no real device fails on demand."""

    def __init__(self, engine: BatchingEngine, fault: Callable[[Any], Any]) -> None:
        self._forward = engine._forward
        self._fault = fault
        engine._forward = self  # type: ignore[method-assign]  # that is the fault

    def __call__(self, plan: Any) -> Any:
        found = self._fault(plan)
        return self._forward(plan) if found is None else found


def involved(plan: Any) -> list[Any]:
    return [*plan.decoding, *(c.sequence for c in plan.chunks)]


def test_a_request_that_fails_fails_alone(
    checkpoint: Path, tokenizer: Any, reference: ReferenceEngine
) -> None:
    engine = make(checkpoint, tokenizer)
    rng = random.Random(4)
    requests = [request(rng) for _ in range(8)]
    bad = Request(Role.CRITIC, "poison", Sampling(temperature=0, max_output_tokens=20))
    poison = tokenizer.encode("poison")

    def fault(plan: Any) -> None:
        if any(s.prompt == poison and len(s.tokens) == 3 for s in involved(plan)):
            raise RuntimeError("a bad row")

    Faulty(engine, fault)
    generations = [engine.submit(r) for r in [*requests[:4], bad, *requests[4:]]]
    with pytest.raises(EngineError, match="RuntimeError: a bad row"):
        generations.pop(4).result()
    for generation, r in zip(generations, requests, strict=True):
        assert same(generation.result(), reference.submit(r).result())
    engine.close()


def test_scores_that_are_no_numbers_end_one_request(
    checkpoint: Path, tokenizer: Any, reference: ReferenceEngine
) -> None:
    engine = make(checkpoint, tokenizer)
    forward = engine._forward

    def fault(plan: Any) -> Any:
        drawing, logits = forward(plan)
        logits = logits.clone()
        rows = [sequence for sequence in drawing for _ in range(1 + len(sequence.draft))]
        for i, sequence in enumerate(rows):
            if len(sequence.prompt) == 2:
                logits[i] = torch.nan
        return drawing, logits

    Faulty(engine, fault)
    rng = random.Random(5)
    requests = [request(rng) for _ in range(4)]
    poisoned = engine.submit(Request(Role.ACTOR, "a", Sampling(max_output_tokens=20)))
    generations = [engine.submit(r) for r in requests]
    with pytest.raises(EngineError, match="not numbers"):
        poisoned.result()
    for generation, r in zip(generations, requests, strict=True):
        assert same(generation.result(), reference.submit(r).result())
    engine.close()


def test_running_out_of_memory_shrinks_the_batch(
    checkpoint: Path, tokenizer: Any, reference: ReferenceEngine
) -> None:
    engine = make(checkpoint, tokenizer)

    def fault(plan: Any) -> None:
        if len(plan.decoding) > 3 or sum(c.end - c.start for c in plan.chunks) > 20:
            raise torch.OutOfMemoryError("out of memory")

    Faulty(engine, fault)
    rng = random.Random(6)
    requests = [request(rng, temperature=(i % 2) * 0.75) for i in range(16)]
    found = [g.result() for g in [engine.submit(r) for r in requests]]
    engine.close()
    assert engine._scheduler.slots <= 3
    assert engine._scheduler.chunk <= 20
    greedy = [i for i in range(16) if not i % 2]
    assert all(same(found[i], reference.submit(requests[i]).result()) for i in greedy)


def test_memory_that_is_too_little_for_one_fails_that_one(checkpoint: Path, tokenizer: Any) -> None:
    engine = make(checkpoint, tokenizer)

    def fault(plan: Any) -> None:
        if any(len(s.tokens) >= 2 for s in plan.decoding):
            raise torch.OutOfMemoryError("out of memory")

    Faulty(engine, fault)
    sampling = Sampling(temperature=0, max_output_tokens=20)
    generation = engine.submit(Request(Role.ACTOR, "gravity", sampling))
    with pytest.raises(EngineError, match="OutOfMemoryError"):
        generation.result()
    short = Sampling(temperature=0, max_output_tokens=1)
    assert engine.submit(Request(Role.ACTOR, "gravity", short)).result().output_tokens == 1
    engine.close()


def test_a_lost_device_is_told(checkpoint: Path, tokenizer: Any) -> None:
    told = threading.Event()
    model = load_model(checkpoint)
    engine = BatchingEngine(model, tokenizer, context=CONTEXT, slots=2, on_device_lost=told.set)

    def fault(_: Any) -> None:
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")

    Faulty(engine, fault)
    with pytest.raises(EngineError, match="AcceleratorError: CUDA error"):
        engine.submit(Request(Role.ACTOR, "Why", Sampling())).result(timeout=60)
    assert told.is_set()
    engine.close()


def test_an_engine_that_stumbles_leaves_nobody_waiting(
    checkpoint: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make(checkpoint, tokenizer)
    wanted = Request(Role.ACTOR, "gravity", Sampling(temperature=0, max_output_tokens=9))

    def stumble() -> None:
        if engine._scheduler.running:
            raise RuntimeError("no text")

    with monkeypatch.context() as patch:
        patch.setattr(engine, "_tell", stumble)
        with pytest.raises(EngineError, match="RuntimeError: no text"):
            engine.submit(wanted).result(timeout=60)
    assert engine.submit(wanted).result(timeout=60).output_tokens == 9
    engine.close()
