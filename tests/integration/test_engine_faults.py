"""Steps that fail: one request pays for its fault, and the others go on."""

from __future__ import annotations

import copy
import random
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.pipeline import Role, Sampling
from tests.conftest import load_models
from tests.integration.batches import CONTEXT, FEW, WORDS, make, request, same
from worker.engine.batching import adaptive_limit, sampler
from worker.engine.batching.engine import BatchingEngine
from worker.engine.batching.scheduler_output import SchedulerOutput
from worker.engine.interface import (
    Completion,
    EngineError,
    FinishReason,
    Request,
)
from worker.engine.kv.paged_cache import BLOCK_SIZE
from worker.engine.reference import ReferenceEngine


class Faulty:
    """A fault put into an engine's steps: a fake, since no real device fails on demand."""

    def __init__(self, engine: BatchingEngine, fault: Callable[[Any], object]) -> None:
        runner: Any = engine._runner
        self._launch = runner.launch
        self._fault = fault
        runner.launch = self

    def __call__(self, plan: Any) -> Any:
        self._fault(plan)
        return self._launch(plan)


def test_a_request_that_fails_fails_alone(
    checkpoint: Path, tokenizer: Any, reference: ReferenceEngine, paged: bool
) -> None:
    engine = make(checkpoint, tokenizer, paged=paged)
    rng = random.Random(4)
    requests = [request(rng) for _ in range(8)]
    bad = Request(Role.CRITIC, "poison", Sampling(temperature=0, max_output_tokens=20))
    poison = tokenizer.encode("poison")

    def fault(plan: Any) -> None:
        if any(
            s.prompt_token_ids == poison and len(s.output_token_ids) == 3 for s in plan.sequences
        ):
            raise RuntimeError("a bad row")

    Faulty(engine, fault)
    generations = [engine.submit(r) for r in [*requests[:4], bad, *requests[4:]]]
    with pytest.raises(EngineError, match="RuntimeError: a bad row"):
        generations.pop(4).result()
    for generation, r in zip(generations, requests, strict=True):
        assert same(generation.result(), reference.submit(r).result())
    engine.close()


def test_scores_that_are_no_numbers_end_one_request(
    checkpoint: Path, tokenizer: Any, reference: ReferenceEngine, paged: bool
) -> None:
    """In the midst of its text, and whatever comes to be where it was has the right text."""
    engine = make(checkpoint, tokenizer, max_num_seqs=4, paged=paged)
    runner: Any = engine._runner
    compute = runner.model

    def fault(*batch: Any) -> Any:
        """No other sequence gets as far."""
        logits = compute(*batch)
        (at, keep) = (batch[0].positions, batch[2]) if paged else (batch[2].positions, batch[3])
        at = at if keep is None else at[keep]
        return logits.masked_fill((at >= 110)[:, None], torch.nan)

    runner.model = fault
    rng = random.Random(5)
    requests = [request(rng) for _ in range(12)]
    long = " ".join(["gravity"] * 105)
    assert len(tokenizer.encode(long)) < 110
    poisoned = engine.submit(Request(Role.ACTOR, long, Sampling(max_output_tokens=90, seed=3)))
    generations = [engine.submit(r) for r in requests]
    with pytest.raises(EngineError, match="not finite"):
        poisoned.result()
    for generation, r in zip(generations, requests, strict=True):
        assert same(generation.result(), reference.submit(r).result())
    engine.close()


def test_running_out_of_memory_shrinks_the_batch(
    checkpoint: Path, tokenizer: Any, reference: ReferenceEngine, paged: bool
) -> None:
    engine = make(checkpoint, tokenizer, paged=paged)
    sizes = []

    def fault(plan: Any) -> None:
        sizes.append(
            (engine._loop.scheduler.max_num_seqs, engine._loop.scheduler.max_num_batched_tokens)
        )
        if len(plan.decodes) > 3 or plan.num_prefill_tokens > 20:
            raise torch.OutOfMemoryError("out of memory")

    Faulty(engine, fault)
    rng = random.Random(6)
    # Short prompts, so that many decode together although few of their tokens are read in a step.
    requests = [
        Request(
            rng.choice(list(Role)),
            " ".join(rng.choices(WORDS, k=2)),
            Sampling(temperature=(i % 2) * 0.75, max_output_tokens=60, seed=i),
        )
        for i in range(16)
    ]
    found = [g.result() for g in [engine.submit(r) for r in requests]]
    engine.close()
    assert min(slots for slots, _ in sizes) <= 3
    assert min(chunk for _, chunk in sizes) <= 20
    greedy = [i for i in range(16) if not i % 2]
    assert all(same(found[i], reference.submit(requests[i]).result()) for i in greedy)


def test_a_batch_grows_again_when_there_is_memory(
    checkpoint: Path,
    tokenizer: Any,
    reference: ReferenceEngine,
    paged: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another program took the memory for a while, and the texts are the same."""
    monkeypatch.setattr(adaptive_limit, "BASE_BACKOFF_STEPS", 3)
    engine = make(checkpoint, tokenizer, paged=paged)
    slots, chunk = (
        engine._loop.scheduler.max_num_seqs,
        engine._loop.scheduler.max_num_batched_tokens,
    )
    least = [slots, chunk]
    scarce = True

    def fault(plan: Any) -> None:
        least[:] = map(
            min,
            least,
            (engine._loop.scheduler.max_num_seqs, engine._loop.scheduler.max_num_batched_tokens),
        )
        if scarce and (len(plan.decodes) > 3 or plan.num_prefill_tokens > 20):
            raise torch.OutOfMemoryError("out of memory")

    Faulty(engine, fault)
    rng = random.Random(6)
    requests = [request(rng) for _ in range(16)]
    requests = [replace(r, sampling=replace(r.sampling, max_output_tokens=24)) for r in requests]
    found = [g.result() for g in [engine.submit(r) for r in requests[:8]]]
    assert least[0] <= 3
    assert least[1] <= 20
    scarce = False
    found += [g.result() for g in [engine.submit(r) for r in requests[8:]]]
    for _ in range(20):
        if (engine._loop.scheduler.max_num_seqs, engine._loop.scheduler.max_num_batched_tokens) == (
            slots,
            chunk,
        ):
            break
        # New prompts: of those that are known there is little to read in a step.
        for generation in [engine.submit(request(rng)) for _ in requests]:
            generation.result()
    engine.close()
    assert (engine._loop.scheduler.max_num_seqs, engine._loop.scheduler.max_num_batched_tokens) == (
        slots,
        chunk,
    )
    assert all(same(f, reference.submit(r).result()) for f, r in zip(found, requests, strict=True))


def test_memory_that_is_too_little_for_one_fails_that_one(
    checkpoint: Path, tokenizer: Any, paged: bool
) -> None:
    engine = make(checkpoint, tokenizer, paged=paged)

    def fault(plan: Any) -> None:
        if any(len(s.output_token_ids) >= 2 for s in plan.decodes):
            raise torch.OutOfMemoryError("out of memory")

    Faulty(engine, fault)
    long = Sampling(temperature=0, max_output_tokens=20)
    generation = engine.submit(Request(Role.ACTOR, "gravity", long))
    with pytest.raises(EngineError, match="OutOfMemoryError"):
        generation.result()
    short = Sampling(temperature=0, max_output_tokens=1)
    assert engine.submit(Request(Role.ACTOR, "gravity", short)).result().output_tokens == 1
    engine.close()


def test_a_lost_device_is_told(checkpoint: Path, tokenizer: Any, paged: bool) -> None:
    told = threading.Event()
    engine = make(checkpoint, tokenizer, max_num_seqs=2, paged=paged, on_device_lost=told.set)

    def fault(_: Any) -> None:
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")

    Faulty(engine, fault)
    with pytest.raises(EngineError, match="AcceleratorError: CUDA error"):
        engine.submit(Request(Role.ACTOR, "Why", Sampling())).result(timeout=60)
    assert told.is_set()
    engine.close()


def test_an_engine_that_stumbles_leaves_nobody_waiting(
    checkpoint: Path, tokenizer: Any, paged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make(checkpoint, tokenizer, paged=paged)
    wanted = Request(Role.ACTOR, "gravity", Sampling(temperature=0, max_output_tokens=9))

    def stumble() -> None:
        if engine._loop.scheduler.running:
            raise RuntimeError("no text")

    with monkeypatch.context() as patch:
        patch.setattr(engine._loop, "_flush_outputs", stumble)
        with pytest.raises(EngineError, match="RuntimeError: no text"):
            engine.submit(wanted).result(timeout=60)
    assert engine.submit(wanted).result(timeout=60).output_tokens == 9
    engine.close()


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("out of memory"), RuntimeError("once")])
def test_an_error_while_tokens_are_drawn_changes_no_text(
    error: Exception,
    checkpoint: Path,
    tokenizer: Any,
    reference: ReferenceEngine,
    paged: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The step is repeated, and must begin where it began."""
    engine = make(checkpoint, tokenizer, paged=paged)
    sample = sampler.sample
    drawn = []

    def fault(logits: Any, *rows: Any, **options: Any) -> Any:
        drawn.append(len(logits))
        if len(drawn) == 6:
            raise error
        return sample(logits, *rows, **options)

    monkeypatch.setattr(sampler, "sample", fault)
    rng = random.Random(7)
    requests = [request(rng) for _ in range(12)]
    found = [g.result() for g in [engine.submit(r) for r in requests]]
    engine.close()
    assert len(drawn) > 6
    assert all(same(f, reference.submit(r).result()) for f, r in zip(found, requests, strict=True))


class Read:
    """A step that is launched, and fails when it is read: a fake, as CUDA reports errors late."""

    def __init__(self, launched: Any) -> None:
        self.sampled_sequences = launched.sampled_sequences

    def get_output(self) -> Any:
        raise RuntimeError("an illegal step")


def failing(engine: BatchingEngine, fails: Callable[[Any], bool]) -> None:
    """Let steps of some plans fail when they are read."""
    runner: Any = engine._runner
    launch = runner.launch

    def launching(plan: Any) -> Any:
        launched = launch(plan)
        return Read(launched) if fails(plan) else launched

    runner.launch = launching


def test_an_error_when_a_step_is_read_fails_those_under_way(
    checkpoint: Path, tokenizer: Any, reference: ReferenceEngine
) -> None:
    """Nobody can tell whose fault it is; who waits for a slot is not hit, nor who comes later."""
    engine = make(checkpoint, tokenizer, max_num_seqs=4, paged=True)
    steps = iter(range(6))
    failing(engine, lambda _: next(steps, None) == 5)
    rng = random.Random(9)
    first, later = ([request(rng) for _ in range(12)] for _ in range(2))
    first = [replace(r, sampling=replace(r.sampling, max_output_tokens=24)) for r in first]
    generations = [engine.submit(r) for r in first]
    found: list[Completion | None] = []
    for generation in generations:
        try:
            found.append(generation.result(timeout=60))
        except EngineError as error:
            assert str(error) == "RuntimeError: an illegal step"  # noqa: PT017  # some have a text
            found.append(None)
    assert 1 <= found.count(None) <= 4
    found += [g.result(timeout=60) for g in [engine.submit(r) for r in later]]
    engine.close()
    for completion, r in zip(found, [*first, *later], strict=True):
        assert completion is None or same(completion, reference.submit(r).result())


def test_who_has_made_room_when_a_step_fails_does_not_wait_for_it(
    checkpoint: Path, tokenizer: Any, reference: ReferenceEngine
) -> None:
    """It waits for the token that will never be read."""
    engine = make(checkpoint, tokenizer, max_num_seqs=4, paged=True, num_blocks=FEW)
    failed: list[Any] = []

    def fails(plan: Any) -> bool:
        """If the next plan makes room: the token of who does is in this one."""
        scheduler = engine._loop.scheduler
        free = engine._runner.kv.num_free_blocks  # type: ignore[attr-defined]  # of blocks
        due = sum(
            (s.num_computed_tokens + 1) % BLOCK_SIZE == 0
            for s in scheduler.running
            if s in plan.decodes
        )
        if not failed and due > free:
            failed.append(plan)
            return True
        return False

    failing(engine, fails)
    rng = random.Random(10)
    requests = [request(rng) for _ in range(16)]
    requests = [replace(r, sampling=replace(r.sampling, max_output_tokens=60)) for r in requests]
    found: list[Completion | None] = []
    for generation in [engine.submit(r) for r in requests]:
        try:
            found.append(generation.result(timeout=60))
        except EngineError:
            found.append(None)
    engine.close()
    assert failed
    assert None in found
    for completion, r in zip(found, requests, strict=True):
        assert completion is None or same(completion, reference.submit(r).result())


def test_memory_that_runs_out_after_another_error_fails_nobody(
    checkpoint: Path, tokenizer: Any, reference: ReferenceEngine, paged: bool
) -> None:
    """Who makes room waits, and is not computed with the others that the first error hit."""
    engine = make(checkpoint, tokenizer, paged=paged)
    errors = iter([None, None, RuntimeError("once"), torch.OutOfMemoryError("out of memory")])
    submitted = threading.Event()

    def fault(_: Any) -> None:
        submitted.wait(60)  # a step of one sequence would fail it
        if (error := next(errors, None)) is not None:
            raise error

    Faulty(engine, fault)
    rng = random.Random(8)
    requests = [request(rng) for _ in range(6)]
    generations = [engine.submit(r) for r in requests]
    submitted.set()
    found = [g.result() for g in generations]
    engine.close()
    assert all(same(f, reference.submit(r).result()) for f, r in zip(found, requests, strict=True))


@pytest.fixture(scope="module")
def poisoned(checkpoint: Path, tokenizer: Any) -> Any:
    """A model that knows no numbers for one token, as where 16 bits overflow."""
    models = load_models(checkpoint)
    [poison] = tokenizer.encode("~", add_special_tokens=False)
    with torch.no_grad():
        models["actor"].get_input_embeddings().weight[poison] = torch.nan  # it is everybody's
    return models


def test_a_prompt_without_numbers_spoils_nothing_that_begins_alike(
    poisoned: Any, tokenizer: Any, reference: ReferenceEngine, paged: bool
) -> None:
    """Nor what comes to be where it was; those that fail with it begin alike as well."""
    engine = BatchingEngine(
        copy.deepcopy(poisoned),
        tokenizer,
        max_model_len=CONTEXT,
        max_num_seqs=4,
        max_num_batched_tokens=16,
        paged=paged,
    )
    beginning = "gravity explains the field " * 6
    greedy = Sampling(temperature=0, max_output_tokens=20)
    bad = [Request(Role.ACTOR, f"{beginning}~{end}", greedy) for end in ("", "and the wind", "~~")]
    good = [
        Request(role, beginning + end, greedy)
        for role in (Role.ACTOR, Role.CRITIC)
        for end in ("", "and the wind", "Earth", "of a planet")
    ]
    for _ in range(2):
        wrong, right = ([engine.submit(r) for r in asked] for asked in (bad, good))
        for generation in wrong:
            with pytest.raises(EngineError, match="not finite"):
                generation.result()
        for generation, r in zip(right, good, strict=True):
            assert same(generation.result(), reference.submit(r).result())
    engine.close()


def test_a_prompt_without_numbers_that_is_cancelled_spoils_nobodys_text(
    poisoned: Any, tokenizer: Any, paged: bool
) -> None:
    engine = BatchingEngine(
        copy.deepcopy(poisoned),
        tokenizer,
        max_model_len=CONTEXT,
        max_num_seqs=2,
        max_num_batched_tokens=8,
        speculation=False,
        paged=paged,
    )
    long, short = (
        Request(Role.ACTOR, text, Sampling(temperature=0, max_output_tokens=20))
        for text in ("gravity " * 60, "Earth wind")
    )
    wanted = [engine.submit(r).result().text for r in (long, short)]
    executor = engine._loop.executor
    execute = executor.execute

    def cancelling(output: SchedulerOutput) -> None:
        execute(output)
        for chunk in output.prefills:
            if "~" in chunk.sequence.generation.request.prompt and chunk.end >= 40:
                chunk.sequence.generation.cancel()

    executor.execute = cancelling  # type: ignore[method-assign]  # in the midst of its prompt
    for _ in range(2):
        bad = Request(Role.CRITIC, "~" * 100, Sampling(temperature=0))
        assert engine.submit(bad).result().finish_reason is FinishReason.CANCELLED
    found = [g.result().text for g in [engine.submit(r) for r in (long, short)]]
    engine.close()
    assert found == wanted


def test_a_draft_without_numbers_costs_nobody_the_text(
    poisoned: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    [poison] = tokenizer.encode("~", add_special_tokens=False)
    engine = BatchingEngine(
        copy.deepcopy(poisoned), tokenizer, max_model_len=CONTEXT, max_num_seqs=4
    )
    wanted = Request(Role.ACTOR, "Earth wind", Sampling(temperature=0, max_output_tokens=30))
    text = engine.submit(wanted).result().text
    asked = []

    def propose(*_: Any, **__: Any) -> list[int]:
        asked.append(1)
        return [poison] if len(asked) == 5 else []

    monkeypatch.setattr(engine._loop.executor._drafter, "propose", propose)
    assert engine.submit(wanted).result().text == text
    engine.close()
    assert len(asked) == 5, "it goes on without drafts"
