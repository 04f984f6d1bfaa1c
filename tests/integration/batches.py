"""Engines and requests that the tests of the batching engine share."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from jobs.pipeline import Role, Sampling
from tests.conftest import load_models
from worker.engine.adapters import Form
from worker.engine.batching import BatchingEngine
from worker.engine.interface import (
    Completion,
    Request,
)

CONTEXT = 256
#: Of small random models.
SIZES: dict[str, Any] = {
    "vocab_size": 768,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "eos_token_id": 2,
}
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
    return BatchingEngine(
        load_models(checkpoint), tokenizer, context=CONTEXT, slots=slots, chunk=chunk
    )


def together(model: PeftModel) -> dict[str, PeftModel]:
    """Give a model that has the adapters of all roles as engines want it."""
    return dict.fromkeys(model.peft_config, model)


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


def compare_with_peft(model: PeftModel, tokenizer: Any, form: Form | None = None) -> None:
    """Hold the scores of a batch of all roles, its prompts in chunks, against PEFT's of each alone."""
    prompts = {role: f"{role} explains the field" for role in Role}
    wanted = {}
    for role in Role:
        model.set_adapter(role.value)
        ids = torch.tensor([tokenizer.encode(prompts[role])])
        with torch.no_grad():
            wanted[role] = model(input_ids=ids).logits[0, -1]
    engine = BatchingEngine(
        together(model), tokenizer, context=64, slots=3, chunk=4, form=form, drafts=False
    )
    seen: dict[int, torch.Tensor] = {}
    forward = engine._forward

    def watched(plan: Any) -> Any:
        drawing, logits = forward(plan)
        for sequence, row in zip(drawing, logits, strict=True):
            seen.setdefault(sequence.adapter, row.clone())
        return drawing, logits

    engine._forward = watched  # type: ignore[method-assign]  # the test looks over its shoulder
    sampling = Sampling(temperature=0, max_output_tokens=6)
    generations = [engine.submit(Request(role, prompts[role], sampling)) for role in Role]
    for generation in generations:
        generation.result()
    engine.close()
    for index, role in enumerate(Role):
        torch.testing.assert_close(seen[index], wanted[role], rtol=1e-4, atol=1e-5)
