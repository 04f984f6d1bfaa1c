"""Engines and requests that the tests of the batching engine share."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from jobs.pipeline import Role, Sampling
from tests.conftest import load_model
from worker.engine.batching import BatchingEngine
from worker.engine.interface import (
    Completion,
    Request,
)

CONTEXT = 256
WORDS = [
    "gravity",
    "atmosphere",
    "field",
    "Earth",
    "wind",
    "planet",
    "answer",
    "explain",
    "happens",
    "clear",
    "made",
    "close",
]


def make(checkpoint: Path, tokenizer: Any, *, slots: int = 8, chunk: int = 64) -> BatchingEngine:
    model = load_model(checkpoint)
    return BatchingEngine(model, tokenizer, context=CONTEXT, slots=slots, chunk=chunk)


def request(rng: random.Random, *, temperature: float = 0.0, limit: int = 24) -> Request:
    words = rng.choices(WORDS, k=rng.randint(0, 60))
    if rng.random() < 0.5:  # as a system prompt does, many begin alike
        words = [*WORDS, *words]
    return Request(
        rng.choice(list(Role)),
        " ".join(words),
        Sampling(
            temperature=temperature,
            max_output_tokens=rng.randint(1, limit),
            seed=rng.randrange(2**53),
        ),
    )


def same(one: Completion, two: Completion) -> bool:
    fields = ("text", "prompt_tokens", "output_tokens", "finish_reason", "max_output_tokens")
    return all(getattr(one, f) == getattr(two, f) for f in fields)
