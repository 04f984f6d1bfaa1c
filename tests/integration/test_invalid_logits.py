"""Logits that are not finite end their own request, and are reused by no other."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.pipeline import Role, Sampling
from tests.conftest import load_models
from tests.integration.batches import CONTEXT, make, request, same
from worker.engine.batching.engine import BatchingEngine
from worker.engine.batching.runner_setup import RunnerOptions
from worker.engine.batching.scheduler_output import SchedulerOutput
from worker.engine.interface import (
    EngineError,
    FinishReason,
    Request,
)
from worker.engine.reference import ReferenceEngine


def test_logits_that_are_not_finite_end_one_request(
    checkpoint: Path, tokenizer: Any, reference: ReferenceEngine, paged: bool
) -> None:
    """In the middle of its text. The sequence that reuses its memory gets the right text."""
    engine = make(checkpoint, tokenizer, max_num_seqs=4, paged=paged)
    runner: Any = engine._runner
    compute = runner.model

    def fault(*batch: Any) -> Any:
        """No other sequence reaches this length."""
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


@pytest.fixture(scope="module")
def poisoned(checkpoint: Path, tokenizer: Any) -> Any:
    """A model with NaN for one token, as after an overflow in 16 bits."""
    models = load_models(checkpoint)
    [poison] = tokenizer.encode("~", add_special_tokens=False)
    with torch.no_grad():
        models["actor"].get_input_embeddings().weight[poison] = torch.nan  # it is shared
    return models


def test_a_prompt_with_nan_does_not_affect_its_shared_prefix(
    poisoned: Any, tokenizer: Any, reference: ReferenceEngine, paged: bool
) -> None:
    """Nor sequences that reuse its memory. Several requests with the same prefix fail."""
    engine = BatchingEngine.from_models(
        copy.deepcopy(poisoned),
        tokenizer,
        RunnerOptions(
            max_model_len=CONTEXT, max_num_seqs=4, max_num_batched_tokens=16, paged=paged
        ),
    )
    beginning = "gravity explains the field " * 6
    greedy = Sampling(temperature=0, max_output_tokens=20)
    invalid = [
        Request(Role.ACTOR, f"{beginning}~{end}", greedy) for end in ("", "and the wind", "~~")
    ]
    sound = [
        Request(role, beginning + end, greedy)
        for role in (Role.ACTOR, Role.CRITIC)
        for end in ("", "and the wind", "Earth", "of a planet")
    ]
    for _ in range(2):
        failing, succeeding = (
            [engine.submit(r) for r in requests] for requests in (invalid, sound)
        )
        for generation in failing:
            with pytest.raises(EngineError, match="not finite"):
                generation.result()
        for generation, r in zip(succeeding, sound, strict=True):
            assert same(generation.result(), reference.submit(r).result())
    engine.close()


def test_a_cancelled_prompt_with_nan_affects_no_other_text(
    poisoned: Any, tokenizer: Any, paged: bool
) -> None:
    engine = BatchingEngine.from_models(
        copy.deepcopy(poisoned),
        tokenizer,
        RunnerOptions(max_model_len=CONTEXT, max_num_seqs=2, max_num_batched_tokens=8, paged=paged),
        speculation=False,
    )
    long, short = (
        Request(Role.ACTOR, text, Sampling(temperature=0, max_output_tokens=20))
        for text in ("gravity " * 60, "Earth wind")
    )
    expected = [engine.submit(r).result().text for r in (long, short)]
    executor = engine._loop.executor
    execute = executor.execute

    def cancelling(output: SchedulerOutput) -> None:
        execute(output)
        for chunk in output.prefills:
            if "~" in chunk.sequence.generation.request.prompt and chunk.end >= 40:
                chunk.sequence.generation.cancel()

    executor.execute = cancelling  # type: ignore[method-assign]  # in the middle of its prompt
    for _ in range(2):
        invalid = Request(Role.CRITIC, "~" * 100, Sampling(temperature=0))
        assert engine.submit(invalid).result().finish_reason is FinishReason.CANCELLED
    texts = [g.result().text for g in [engine.submit(r) for r in (long, short)]]
    engine.close()
    assert texts == expected


def test_a_draft_with_nan_does_not_end_the_request(
    poisoned: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    [poison] = tokenizer.encode("~", add_special_tokens=False)
    engine = BatchingEngine.from_models(
        copy.deepcopy(poisoned), tokenizer, RunnerOptions(max_model_len=CONTEXT, max_num_seqs=4)
    )
    request = Request(Role.ACTOR, "Earth wind", Sampling(temperature=0, max_output_tokens=30))
    text = engine.submit(request).result().text
    proposals = []

    def propose(*_: Any, **__: Any) -> list[int]:
        proposals.append(1)
        return [poison] if len(proposals) == 5 else []

    monkeypatch.setattr(engine._loop.executor._drafter, "propose", propose)
    assert engine.submit(request).result().text == text
    engine.close()
    assert len(proposals) == 5, "it goes on without drafts"
