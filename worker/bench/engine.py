"""Jobs an hour: the batching engine against the reference engine, same model, same questions."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerBase,
)

from jobs import pipeline
from jobs.pipeline import DEFAULT_SYSTEM, Role, Sampling, stage_seed
from worker.engine.batching import BatchingEngine
from worker.engine.interface import Engine, Request
from worker.engine.reference import ReferenceEngine
from worker.engine.threads import apart


@dataclass(frozen=True)
class Model:
    """A base with its tokenizer and an adapter for each role, as folders."""

    base: Path
    adapters: dict[Role, Path]

    def load(self, dtype: torch.dtype, device: torch.device) -> PeftModel:
        base: Any = AutoModelForCausalLM.from_pretrained(self.base, dtype=dtype)
        base.to(device)
        model: PeftModel | None = None
        for role, folder in self.adapters.items():
            if model is None:
                model = PeftModel.from_pretrained(
                    base, str(folder), adapter_name=role.value, autocast_adapter_dtype=False
                )
            else:
                model.load_adapter(
                    str(folder), adapter_name=role.value, autocast_adapter_dtype=False
                )
        assert model is not None  # noqa: S101 (there are three roles)
        return model.eval()


@dataclass(frozen=True)
class Result:
    """What an engine did."""

    engine: str
    #: Jobs at once.
    at_once: int
    jobs: int
    seconds: float
    #: New tokens of all stages.
    tokens: int
    #: Of the prompts of all stages.
    prompt_tokens: int
    #: Median seconds from a stage's start to its first token.
    first_token: float

    @property
    def jobs_an_hour(self) -> float:
        return self.jobs / self.seconds * 3600

    @property
    def tokens_a_second(self) -> float:
        return self.tokens / self.seconds

    def to_json(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "jobs_an_hour": self.jobs_an_hour,
            "tokens_a_second": self.tokens_a_second,
        }


def synthetic(
    folder: Path, tokenizer: Path, *, hidden: int, layers: int, rank: int, seed: int = 0
) -> Model:
    """Make a Mistral of random weights with three random adapters; its texts do not end.

    Args:
        folder: an empty one.
        tokenizer: a folder with one; its tokens are the first of the vocabulary of 32,000.
        hidden: width; the rest is in Mistral-7B's proportions (heads of 64).
        layers: depth.
        rank: of the adapters.
        seed: of all weights.
    """
    torch.manual_seed(seed)
    heads = hidden // 64
    config = MistralConfig(
        vocab_size=32_000,
        hidden_size=hidden,
        intermediate_size=hidden * 7 // 2,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 4),
        max_position_embeddings=4096,
        sliding_window=None,
        eos_token_id=2,
    )
    base: Any = MistralForCausalLM(config)
    base.save_pretrained(folder / "base")
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder / "base")
    targets = [f"{p}_proj" for p in ("q", "k", "v", "o", "gate", "up", "down")]
    for role in Role:
        adapter: Any = get_peft_model(
            AutoModelForCausalLM.from_pretrained(folder / "base"),
            LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets, task_type="CAUSAL_LM"),
        )
        with torch.no_grad():
            for name, weight in adapter.named_parameters():
                if "lora_B" in name:
                    weight.normal_(std=0.02)
        adapter.save_pretrained(str(folder / role), save_embedding_layers=False)
    return Model(folder / "base", {role: folder / role for role in Role})


def questions(tokenizer: PreTrainedTokenizerBase, count: int, tokens: int, seed: int) -> list[str]:
    """Draw questions of about so many tokens each."""
    rng = random.Random(seed)
    texts = [str(tokenizer.decode([i])).strip() for i in range(len(tokenizer))]
    words = [text for text in texts if text.isalpha()]
    found = []
    for _ in range(count):
        question = rng.choice(words)
        while len(tokenizer.encode(question)) < tokens:
            question += f" {rng.choice(words)}"
        found.append(question)
    return found


def run_jobs(
    engine: Engine,
    asked: Sequence[str],
    *,
    at_once: int,
    sampling: Sampling,
    told: Callable[[], object] = lambda: None,
) -> Result:
    """Run whole jobs, each on a thread that waits for its stages, as the worker's threads do.

    Args:
        engine: the engine.
        asked: the questions, one job each.
        at_once: how many jobs run at the same time.
        sampling: of every stage; its seed is the first job's.
        told: called after every job.
    """
    waiting = list(enumerate(asked))[::-1]
    lock = threading.Lock()
    tokens = prompts = 0
    firsts: list[float] = []

    def serve() -> None:
        nonlocal tokens, prompts
        while True:
            with lock:
                if not waiting:
                    return
                number, question = waiting.pop()
            outputs: list[str] = []
            for stage in pipeline.stages():
                seed = stage_seed(sampling.seed + number, stage.position)
                drawn = replace(sampling, seed=seed)
                prompt = pipeline.prompt(stage, DEFAULT_SYSTEM, question, outputs)
                start = time.monotonic()
                request = Request(stage.role, prompt, drawn, priority=stage.position)
                completion = engine.submit(request).result()
                outputs.append(completion.text)
                with lock:
                    tokens += completion.output_tokens
                    prompts += completion.prompt_tokens
                    firsts.append((completion.first_token_at or start) - start)
            told()

    threads = [threading.Thread(target=serve) for _ in range(at_once)]
    start = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.monotonic() - start
    first = sorted(firsts)[len(firsts) // 2]
    return Result(engine.name, at_once, len(asked), seconds, tokens, prompts, first)


def run(
    model: Model,
    *,
    asked: Sequence[str],
    reference_jobs: int,
    slots: Sequence[int],
    sampling: Sampling,
    context: int,
    dtype: torch.dtype,
    device: torch.device,
    told: Callable[[str], object] = lambda _: None,
) -> list[Result]:
    """Measure the reference engine, then the batching engine at several numbers of slots.

    Args:
        model: the checkpoints; both engines load them from the disk.
        asked: the questions of the batching engine.
        reference_jobs: how many of them the reference engine gets: it is slow.
        slots: numbers of slots, each with as many jobs at once.
        sampling: of every stage.
        context: tokens of prompt and output together.
        dtype: of the weights.
        device: where to compute.
        told: called with what happens next.
    """
    tokenizer: Any = AutoTokenizer.from_pretrained(model.base)
    told(f"the reference engine answers {reference_jobs} questions")
    reference = apart(
        lambda: ReferenceEngine(model.load(dtype, device), tokenizer, context=context)
    )
    run_jobs(reference, asked[:1], at_once=1, sampling=sampling)  # warms up
    results = [run_jobs(reference, asked[:reference_jobs], at_once=1, sampling=sampling)]
    reference.close()
    del reference
    for count in slots:
        mine = asked if count > 1 else asked[:reference_jobs]
        told(f"the batching engine answers {len(mine)} questions, {count} at once")
        engine = apart(partial(_batching, model, tokenizer, context, count, dtype, device))
        run_jobs(engine, asked[:1], at_once=1, sampling=sampling)
        results.append(run_jobs(engine, mine, at_once=count, sampling=sampling))
        engine.close()
        del engine
    return results


def _batching(
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    context: int,
    slots: int,
    dtype: torch.dtype,
    device: torch.device,
) -> BatchingEngine:
    return BatchingEngine(model.load(dtype, device), tokenizer, context=context, slots=slots)
