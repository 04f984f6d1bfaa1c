"""Jobs an hour: the batching engine against the reference engine, same model, same questions."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from statistics import median
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import (
    AutoTokenizer,
)

from jobs import pipeline
from jobs.pipeline import DEFAULT_SYSTEM, Sampling, stage_seed
from worker.bench.models import Model
from worker.bench.peak import Peak
from worker.engine.batching.cuda_graphs import cuda_graph_capture
from worker.engine.batching.engine import BatchingEngine
from worker.engine.batching.runner_setup import RunnerOptions
from worker.engine.interface import Engine, Request
from worker.engine.reference import ReferenceEngine
from worker.engine.threads import run_in_fresh_thread

#: Parts that the batching engine is measured without.
ADAPTERS, DRAFTS, GRAPHS = "adapters", "drafts", "CUDA graphs"
#: The question of the warm-up job.
WARM_UP = "Is everything warm?"


@dataclass(frozen=True)
class Result:
    """The measurement of an engine."""

    engine: str
    #: Jobs that run at the same time.
    at_once: int
    jobs: int
    seconds: float
    #: New tokens of all stages.
    tokens: int
    #: Prompt tokens of all stages.
    prompt_tokens: int
    #: Median seconds from a stage's start to its first token; 0 if the engine does not report it.
    first_token: float
    #: Steps of the engine, and the tokens that they computed, without those of cached prefixes.
    steps: int
    computed: int
    #: Time that the hardware's peak would take, as a share of the measured time; 0 if it is unknown.
    share_of_limit: float = 0.0

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


def run_jobs(
    engine: Engine,
    questions: Sequence[str],
    *,
    at_once: int,
    sampling: Sampling,
) -> Result:
    """Run whole jobs, each on a thread that waits for its stages, as in a worker.

    Args:
        engine: the engine.
        questions: the questions, one job each.
        at_once: number of jobs that run at the same time.
        sampling: of every stage; its seed is the first job's.

    Raises:
        EngineError: a request failed.
    """
    waiting = list(enumerate(questions))[::-1]
    lock = threading.Lock()
    tokens = prompts = 0
    firsts: list[float] = []
    steps = computed = 0
    if isinstance(engine, BatchingEngine):
        steps, computed = engine.num_steps, engine.num_computed_tokens

    def serve() -> None:
        nonlocal tokens, prompts
        while True:
            with lock:
                if not waiting:
                    return
                number, question = waiting.pop()
            outputs: list[str] = []
            for stage in pipeline.stages():
                seed = stage_seed(sampling.seed + number, stage.index)
                stage_sampling = replace(sampling, seed=seed)
                prompt = pipeline.prompt(stage, DEFAULT_SYSTEM, question, outputs)
                start = time.monotonic()
                request = Request(stage.role, prompt, stage_sampling, priority=stage.index)
                completion = engine.submit(request).result()
                outputs.append(completion.text)
                with lock:
                    tokens += completion.output_tokens
                    prompts += completion.prompt_tokens
                    firsts.append((completion.first_token_at or start) - start)

    start = time.monotonic()
    with ThreadPoolExecutor(at_once) as pool:
        for served in [pool.submit(serve) for _ in range(at_once)]:
            served.result()
    seconds = time.monotonic() - start
    first = sorted(firsts)[len(firsts) // 2]
    if isinstance(engine, BatchingEngine):
        steps, computed = engine.num_steps - steps, engine.num_computed_tokens - computed
    else:
        steps, computed = tokens, tokens + prompts
    return Result(
        engine.name, at_once, len(questions), seconds, tokens, prompts, first, steps, computed
    )


def run(
    model: Model,
    *,
    questions: Sequence[str],
    reference_jobs: int,
    slots: Sequence[int],
    sampling: Sampling,
    context: int,
    dtype: torch.dtype,
    device: torch.device,
    bare: bool = False,
    make_other: Callable[[int], Engine] | None = None,
    on_progress: Callable[[str], object] = lambda _: None,
) -> list[Result]:
    """Measure the reference engine, then the batching engine at several numbers of slots.

    Then the batching engine is measured without one of its parts. With ``bare`` that is the adapters, at
    the largest number of slots; else the drafts, at the smallest. On CUDA, CUDA graphs follow, at the
    smallest number of slots.

    Another engine may be measured at each number of slots, right after the batching engine. It reports
    neither the times of first tokens nor steps.

    Args:
        model: the checkpoints; each engine loads them from the disk.
        questions: the questions of the batching engine.
        reference_jobs: how many of them the reference engine answers, since it is slow.
        slots: numbers of slots; as many jobs run at the same time.
        sampling: of every stage.
        context: the maximum number of tokens of prompt and output together.
        dtype: of the weights.
        device: where to compute.
        bare: whether to measure the base without adapters; its texts should be as long as those with.
        make_other: creates the other engine with a number of slots.
        on_progress: called with a description of the next step.
    """
    on_progress("the peak of the hardware")
    peak = run_in_fresh_thread(partial(Peak.measure, dtype, device))
    bench = _Benchmark(
        model,
        AutoTokenizer.from_pretrained(model.base),
        questions,
        reference_jobs,
        sampling,
        context,
        dtype,
        device,
        on_progress,
    )
    reference, weights = bench.reference()
    compared = [(max(slots), ADAPTERS) if bare else (min(slots), DRAFTS)]
    if device.type == "cuda":
        compared.append((min(slots), GRAPHS))
    repeats: dict[tuple[int, str], list[Result]] = {}
    others: dict[int, Result] = {}
    for count, without in _order(slots, compared):
        repeats.setdefault((count, without), []).append(bench.batching(count, without))
        if make_other and count not in others:
            engine = make_other(count)
            others[count] = bench.measure(engine, count, engine.name)
    batching = [_sum(repeats[key]) for key in (*((count, "") for count in slots), *compared)]
    measured = [_limited(each, peak, weights, dtype) for each in (reference, *batching)]
    return [*measured, *(others[count] for count in slots if make_other)]


def _order(slots: Sequence[int], compared: Sequence[tuple[int, str]]) -> list[tuple[int, str]]:
    """Return in which order the batching engine is measured: with how many slots, and without which part.

    A machine's speed changes within minutes, so both sides of a comparison are measured twice: with, without,
    without, with.
    """
    runs = [(count, "") for count in slots if count != compared[0][0]]
    for count, without in compared:
        runs += [(count, ""), (count, without), (count, without), (count, "")]
    return runs


def _limited(result: Result, peak: Peak, weights: int, dtype: torch.dtype) -> Result:
    """Return a result with its share of what the hardware can do.

    Args:
        result: of an engine.
        peak: of the hardware.
        weights: the number that a token is multiplied with.
        dtype: of the weights.
    """
    operations = 2 * weights * result.computed
    shortest = peak.seconds(operations, weights * dtype.itemsize * result.steps)
    return replace(result, share_of_limit=shortest / result.seconds)


@dataclass(frozen=True)
class _Benchmark:
    """What engines are measured with; the fields are arguments of `run`."""

    model: Model
    tokenizer: Any
    questions: Sequence[str]
    reference_jobs: int
    sampling: Sampling
    context: int
    dtype: torch.dtype
    device: torch.device
    on_progress: Callable[[str], object]

    def measure(self, engine: Engine, at_once: int, name: str) -> Result:
        """Measure an engine with so many jobs at once, and close it."""
        questions = self.questions if at_once > 1 else self.questions[: self.reference_jobs]
        self.on_progress(f"{name} answers {len(questions)} questions, {at_once} at once")
        return replace(_run_warm(engine, questions, at_once, self.sampling), engine=name)

    def reference(self) -> tuple[Result, int]:
        """Measure the reference engine; return also the number of weights that a token is multiplied with."""
        loaded = run_in_fresh_thread(partial(self.model.load, self.dtype, self.device))
        weights = _multiplied(loaded)
        engine = ReferenceEngine(loaded, self.tokenizer, max_model_len=self.context)
        return self.measure(engine, 1, ReferenceEngine.name), weights

    def batching(self, slots: int, without: str) -> Result:
        """Measure the batching engine, without one of its parts if ``without`` names one."""
        gc.collect()  # An engine and its thread are a reference cycle, and two models may not fit in memory.
        name = f"{BatchingEngine.name}, no {without}" if without else BatchingEngine.name
        return self.measure(run_in_fresh_thread(partial(self._load, slots, without)), slots, name)

    def _load(self, slots: int, without: str) -> BatchingEngine:
        models = self.model.load(self.dtype, self.device)
        if without == ADAPTERS:
            _remove_adapters(models)
        return BatchingEngine.from_models(
            models,
            self.tokenizer,
            RunnerOptions(
                max_model_len=self.context,
                max_num_seqs=slots,
                capture=None if without == GRAPHS else cuda_graph_capture,
            ),
            speculation=without != DRAFTS,
        )


def _sum(results: Sequence[Result]) -> Result:
    """Return the sum of several measurements of one engine, with the median time to the first token."""
    added = ("jobs", "seconds", "tokens", "prompt_tokens", "steps", "computed")
    sums: dict[str, Any] = {name: sum(getattr(r, name) for r in results) for name in added}
    return replace(results[0], first_token=median(r.first_token for r in results), **sums)


def run_reference(
    model: Model,
    questions: Sequence[str],
    sampling: Sampling,
    dtype: torch.dtype,
    device: torch.device,
) -> Result:
    """Measure the reference engine, one job at a time; the arguments are those of `run`."""
    tokenizer: Any = AutoTokenizer.from_pretrained(model.base)
    loaded = run_in_fresh_thread(partial(model.load, dtype, device))
    context = int(next(iter(loaded.values())).config.max_position_embeddings)
    return _run_warm(
        ReferenceEngine(loaded, tokenizer, max_model_len=context), questions, 1, sampling
    )


def _run_warm(engine: Engine, questions: Sequence[str], at_once: int, sampling: Sampling) -> Result:
    """Run a warm-up job, then all jobs, and close the engine."""
    # Another question: an engine may draft what it generated before.
    try:
        run_jobs(engine, [WARM_UP], at_once=1, sampling=sampling)
        return run_jobs(engine, questions, at_once=at_once, sampling=sampling)
    finally:
        engine.close()


def _multiplied(models: dict[str, PeftModel]) -> int:
    """Return the number of weights that a token is multiplied with: the base's and one adapter's."""
    model = next(iter(models.values()))
    return sum(module.weight.numel() for module in model.modules() if type(module) is nn.Linear)


def _remove_adapters(models: dict[str, PeftModel]) -> None:
    for model in models.values():
        for layer in model.modules():
            if isinstance(layer, LoraLayer):
                layer.lora_A.clear()
                layer.lora_B.clear()
