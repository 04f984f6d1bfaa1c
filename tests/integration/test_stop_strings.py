"""Stop strings: where they end the texts of the engines, and which stage has them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs.database import Database
from jobs.pipeline import Sampling
from jobs.use_cases import stages
from tests.conftest import start_engine
from tests.integration.batches import make, request, same
from tests.integration.rows import OUTPUT, QUESTION, claim, submit
from worker.engine.batching.engine import BatchingEngine
from worker.engine.interface import Completion, FinishReason, Generation, Request
from worker.engine.reference import ReferenceEngine


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> Iterator[ReferenceEngine]:
    engine = start_engine(checkpoint)
    yield engine
    engine.close()


@pytest.fixture(scope="module", params=[False, True], ids=["rows", "pages"])
def batching(
    checkpoint: Path, tokenizer: Any, request: pytest.FixtureRequest
) -> Iterator[BatchingEngine]:
    engine = make(checkpoint, tokenizer, max_num_seqs=4, paged=request.param)
    yield engine
    engine.close()


def stopped(asked: Request, whole: Completion, rng: random.Random) -> tuple[Request, str]:
    """Return a request that stops within its text, and the text that remains."""
    start = rng.randrange(len(whole.text))
    stop = whole.text[start : start + rng.randint(1, 6)]
    sampling = replace(asked.sampling, stop=(stop, "it is never there"))
    return replace(asked, sampling=sampling), whole.text[: whole.text.index(stop)]


def test_a_text_ends_before_its_first_stop_string_alone_and_among_others(
    reference: ReferenceEngine, batching: BatchingEngine
) -> None:
    rng = random.Random(3)
    plain: list[Request] = []
    wholes: list[Completion] = []
    while len(plain) < 12:
        each = request(rng)
        whole = reference.submit(each).result()
        if whole.text:
            plain.append(each)
            wholes.append(whole)
    asked = [stopped(p, w, rng) for p, w in zip(plain, wholes, strict=True)]
    # Those without stop strings run in the same batches, and their texts are as long as before.
    generations = [batching.submit(each) for each, _ in asked]
    beside = [batching.submit(each) for each in plain]
    for (each, text), generation in zip(asked, generations, strict=True):
        streamed = list(generation)
        completion = generation.result()
        assert completion.text == text == "".join(streamed)
        assert streamed == completion.deltas
        assert completion.finish_reason is FinishReason.STOP_STRING
        assert same(completion, reference.submit(each).result())
    for generation, whole in zip(beside, wholes, strict=True):
        assert same(generation.result(), whole)


def test_a_stop_string_that_never_comes_changes_nothing(
    reference: ReferenceEngine, batching: BatchingEngine
) -> None:
    rng = random.Random(4)
    for _ in range(4):
        asked = request(rng)
        whole = reference.submit(asked).result()
        waiting = replace(asked, sampling=replace(asked.sampling, stop=("\0never", "nor\0 this")))
        for engine in reference, batching:
            assert same(engine.submit(waiting).result(), whole)


def test_an_endless_text_ends_there_and_frees_its_slot(endless: Path, tokenizer: Any) -> None:
    engine = make(endless, tokenizer, max_num_seqs=1)
    try:
        asked = request(random.Random(5))
        asked = replace(asked, sampling=Sampling(temperature=0, max_output_tokens=40))
        text = engine.submit(asked).result().text
        long = replace(asked.sampling, max_output_tokens=150, stop=(text[12:18],))
        completion = engine.submit(replace(asked, sampling=long)).result()
        assert completion.text == text[: text.index(text[12:18])]
        assert completion.output_tokens < 40
        assert engine.submit(asked).result().text == text, "the one slot is free"
    finally:
        engine.close()


def test_text_that_is_held_back_at_a_cancel_is_not_streamed(
    reference: ReferenceEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stage that a stopping worker gives back runs again, and streams longer deltas."""
    rng = random.Random(6)
    whole = None
    while whole is None or not any(len(delta) > 1 for delta in whole.deltas[1:-1]):
        asked = request(rng)
        whole = reference.submit(asked).result()
    number = next(n for n, delta in enumerate(whole.deltas) if n and len(delta) > 1)
    # Of this delta, all but the first character is held back.
    start = len("".join(whole.deltas[:number])) + 1
    stop = (whole.text[start : start + 200] + "\0",)
    emit = Generation.emit

    def emit_and_cancel(generation: Generation, delta: str) -> None:
        emit(generation, delta)
        if len("".join(generation.deltas_from(0))) >= start:
            generation.cancel()

    monkeypatch.setattr(Generation, "emit", emit_and_cancel)
    generation = reference.submit(replace(asked, sampling=replace(asked.sampling, stop=stop)))
    assert generation.result().finish_reason is FinishReason.CANCELLED
    assert "".join(generation.deltas_from(0)) == whole.text[:start]


def test_only_the_last_stage_has_them(database: Database) -> None:
    sampling = replace(QUESTION.sampling, stop=("\n\n", "Question:"))
    job = submit(database, sampling=sampling, rounds=2)
    for stage_index in range(5):
        claimed = claim(database, job, stage_index)
        assert claimed.sampling.stop == (sampling.stop if stage_index == 4 else ())
        assert stages.record(database, claimed, OUTPUT)
