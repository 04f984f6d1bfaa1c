"""Engines and requests for tests of the batching engine."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from jobs.pipeline import Role, Sampling
from tests.conftest import load_models
from tests.servers import PATIENCE
from worker.engine import probe
from worker.engine.batching.engine import BatchingEngine
from worker.engine.batching.runner_setup import RunnerOptions
from worker.engine.batching.sequence import Sequence as BatchSequence
from worker.engine.interface import (
    Completion,
    Request,
)
from worker.engine.kv.paged_cache import BLOCK_SIZE
from worker.engine.lora.linear import LoRALinear

CONTEXT = 256
#: The minimum number of blocks: they hold one context.
FEW = CONTEXT // BLOCK_SIZE + 1
#: Sizes of small random models.
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


def make(
    checkpoint: Path,
    tokenizer: Any,
    *,
    max_num_seqs: int = 8,
    max_num_batched_tokens: int = 64,
    on_engine_dead: Callable[[], object] = lambda: None,
    max_step_seconds: float | None = None,
    **options: Any,
) -> BatchingEngine:
    return BatchingEngine.from_models(
        load_models(checkpoint),
        tokenizer,
        RunnerOptions(
            max_model_len=CONTEXT,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            **options,
        ),
        on_engine_dead=on_engine_dead,
        max_step_seconds=max_step_seconds,
    )


def together(model: PeftModel) -> dict[str, PeftModel]:
    """Return a PEFT model with the adapters of all roles in the form that engines take."""
    return dict.fromkeys(model.peft_config, model)


def request(rng: random.Random, *, temperature: float = 0.0, limit: int = 24) -> Request:
    words = rng.choices(WORDS, k=rng.randint(0, 60))
    if rng.random() < 0.5:  # a common prefix, like a system prompt's
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


@contextmanager
def submitted_together(engine: BatchingEngine) -> Iterator[None]:
    """Have an idle engine schedule its next step once the block has ended, with all that was submitted in it.

    Otherwise it depends on the machine how many requests it has when it begins.
    """
    loop, all_there = engine._loop, threading.Event()
    scheduler: Any = loop.scheduler
    schedule = scheduler.schedule

    def schedule_all() -> Any:
        assert all_there.wait(PATIENCE)
        loop._admit(block=False)
        return schedule()

    scheduler.schedule = schedule_all
    try:
        yield
    finally:
        all_there.set()
        del scheduler.schedule


def complete(engine: BatchingEngine, requests: Sequence[Request]) -> list[Completion]:
    """Submit requests together; return their completions."""
    with submitted_together(engine):
        generations = [engine.submit(request) for request in requests]
    return [generation.result() for generation in generations]


def same(first: Completion, second: Completion) -> bool:
    fields = ("text", "prompt_tokens", "output_tokens", "finish_reason", "max_output_tokens")
    return all(getattr(first, f) == getattr(second, f) for f in fields)


def watch(
    engine: BatchingEngine, on_logits: Callable[[BatchSequence, torch.Tensor], object]
) -> None:
    """Call a function with the logits of each sampled token. The engine must have no drafts and no CUDA graphs."""
    runner: Any = engine._runner
    compute, launch = runner.model, runner.launch
    scores: list[torch.Tensor] = []

    def computing(*batch: Any) -> torch.Tensor:
        scores.append(compute(*batch))
        return scores[-1]

    def launching(plan: Any) -> Any:
        launched = launch(plan)
        for sequence, row in zip(launched.sampled_sequences, scores.pop(), strict=True):
            on_logits(sequence, row.clone())
        return launched

    runner.model = computing
    runner.launch = launching


def compare_with_peft(
    model: PeftModel, tokenizer: Any, form: LoRALinear | None = None, *, paged: bool = False
) -> None:
    """Compare the logits of a batch of all roles, with chunked prompts, with PEFT's of each role alone.

    So are those of a prompt that fills a block and of the token after it, all roles in the same steps.
    """
    prompts = {role: f"{role} explains the field" for role in Role}
    ids = [*itertools.islice(itertools.cycle(probe.probe_token_ids(model.config)), BLOCK_SIZE + 1)]
    expected, proof = {}, {}
    for role in Role:
        model.set_adapter(role.value)
        prompt = torch.tensor([tokenizer.encode(prompts[role])])
        with torch.no_grad():
            expected[role] = model(input_ids=prompt).logits[0, -1]
        proof[role.value] = probe.peft_logits(model, role.value, ids)
    engine = BatchingEngine.from_models(
        together(model),
        tokenizer,
        RunnerOptions(
            max_model_len=64,
            max_num_seqs=3,
            max_num_batched_tokens=4,
            lora_linear=form,
            paged=paged,
        ),
        speculation=False,
    )
    scores = engine.compute_logits(ids)
    logits: dict[int, torch.Tensor] = {}
    watch(engine, lambda sequence, row: logits.setdefault(sequence.adapter_id, row))
    sampling = Sampling(temperature=0, max_output_tokens=6)
    generations = [engine.submit(Request(role, prompts[role], sampling)) for role in Role]
    for generation in generations:
        generation.result()
    engine.close()
    for index, role in enumerate(Role):
        torch.testing.assert_close(logits[index], expected[role], rtol=1e-4, atol=1e-5)
    probe.check(scores, proof, torch.float32, 1e-4)
