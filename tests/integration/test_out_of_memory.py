"""Steps shrink when memory runs out, and grow when there is memory again."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.pipeline import Role, Sampling
from tests.integration.batches import WORDS, complete, make, request, same
from tests.integration.faults import before_launch
from worker.engine.batching import adaptive_limit
from worker.engine.interface import (
    EngineError,
    Request,
)
from worker.engine.reference import ReferenceEngine


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

    before_launch(engine, fault)
    rng = random.Random(6)
    # Short prompts, so that many sequences decode together despite small prefill chunks.
    requests = [
        Request(
            rng.choice(list(Role)),
            " ".join(rng.choices(WORDS, k=2)),
            Sampling(temperature=(i % 2) * 0.75, max_output_tokens=60, seed=i),
        )
        for i in range(16)
    ]
    completions = complete(engine, requests)
    engine.close()
    assert min(slots for slots, _ in sizes) <= 3
    assert min(chunk for _, chunk in sizes) <= 20
    greedy = [i for i in range(16) if not i % 2]
    assert all(same(completions[i], reference.submit(requests[i]).result()) for i in greedy)


def test_a_batch_grows_again_when_there_is_memory(
    checkpoint: Path,
    tokenizer: Any,
    reference: ReferenceEngine,
    paged: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another program uses the memory for a while; the texts are the same."""
    monkeypatch.setattr(adaptive_limit, "BASE_BACKOFF_STEPS", 3)
    engine = make(checkpoint, tokenizer, paged=paged)
    slots, chunk = (
        engine._loop.scheduler.max_num_seqs,
        engine._loop.scheduler.max_num_batched_tokens,
    )
    min_sizes = [slots, chunk]
    scarce = True

    def fault(plan: Any) -> None:
        min_sizes[:] = map(
            min,
            min_sizes,
            (engine._loop.scheduler.max_num_seqs, engine._loop.scheduler.max_num_batched_tokens),
        )
        if scarce and (len(plan.decodes) > 3 or plan.num_prefill_tokens > 20):
            raise torch.OutOfMemoryError("out of memory")

    before_launch(engine, fault)
    rng = random.Random(6)
    requests = [request(rng) for _ in range(16)]
    requests = [replace(r, sampling=replace(r.sampling, max_output_tokens=24)) for r in requests]
    completions = complete(engine, requests[:8])
    assert min_sizes[0] <= 3
    assert min_sizes[1] <= 20
    scarce = False
    completions += complete(engine, requests[8:])
    for _ in range(20):
        if (engine._loop.scheduler.max_num_seqs, engine._loop.scheduler.max_num_batched_tokens) == (
            slots,
            chunk,
        ):
            break
        # New prompts, since cached ones have little to prefill.
        complete(engine, [request(rng) for _ in requests])
    engine.close()
    assert (engine._loop.scheduler.max_num_seqs, engine._loop.scheduler.max_num_batched_tokens) == (
        slots,
        chunk,
    )
    assert all(
        same(c, reference.submit(r).result()) for c, r in zip(completions, requests, strict=True)
    )


def test_a_request_too_large_for_memory_fails_alone(
    checkpoint: Path, tokenizer: Any, paged: bool
) -> None:
    engine = make(checkpoint, tokenizer, paged=paged)

    def fault(plan: Any) -> None:
        if any(len(s.output_token_ids) >= 2 for s in plan.decodes):
            raise torch.OutOfMemoryError("out of memory")

    before_launch(engine, fault)
    long = Sampling(temperature=0, max_output_tokens=20)
    generation = engine.submit(Request(Role.ACTOR, "gravity", long))
    with pytest.raises(EngineError, match="OutOfMemoryError"):
        generation.result()
    short = Sampling(temperature=0, max_output_tokens=1)
    assert engine.submit(Request(Role.ACTOR, "gravity", short)).result().output_tokens == 1
    engine.close()


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("out of memory"), RuntimeError("once")])
def test_block_tables_that_were_not_copied_are_copied_with_the_next_step(
    error: Exception, checkpoint: Path, tokenizer: Any, reference: ReferenceEngine
) -> None:
    """A sequence would otherwise keep all its tokens in one block, or in those of others."""
    engine = make(checkpoint, tokenizer, paged=True)
    runner: Any = engine._runner
    to_device, update = runner._to_device, runner._update_block_tables
    has_failed = False

    def failing_copy(array: Any) -> Any:
        nonlocal has_failed
        _, blocks = array.reshape(2, -1)
        if not has_failed and (blocks > 0).sum() > 2:  # a sequence of several blocks is admitted
            has_failed = True
            raise error
        return to_device(array)

    def failing_update() -> None:
        runner._to_device = failing_copy
        try:
            update()
        finally:
            runner._to_device = to_device

    runner._update_block_tables = failing_update
    rng = random.Random(8)
    requests = [request(rng, limit=60) for _ in range(12)]
    completions = complete(engine, requests)
    engine.close()
    assert has_failed
    assert all(
        same(c, reference.submit(r).result()) for c, r in zip(completions, requests, strict=True)
    )
