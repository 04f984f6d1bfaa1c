"""Speed by the number of sequences, and by their length."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from jobs.pipeline import Role, Sampling
from worker.bench.engine import Result
from worker.bench.models import Model, questions
from worker.engine.batching.engine import BatchingEngine
from worker.engine.batching.runner_setup import RunnerOptions
from worker.engine.interface import Request
from worker.engine.threads import run_in_fresh_thread

#: New tokens of each sequence in the measurement by length.
NEW = 32
#: Sequences that are decoded together in it.
SLOTS = 16


@dataclass(frozen=True)
class Point:
    """The speed at one length of the prompts."""

    #: Tokens of each prompt.
    length: int
    tokens_a_second: float


def by_length(
    model: Model,
    lengths: Sequence[int],
    *,
    context: int,
    dtype: torch.dtype,
    device: torch.device,
    seed: int,
    on_progress: Callable[[str], object] = lambda _: None,
) -> list[Point]:
    """Measure prompts of several lengths with `NEW` tokens after each; roles are mixed.

    Args:
        model: the checkpoints.
        lengths: tokens of each prompt.
        context: tokens of prompt and output together.
        dtype: of the weights.
        device: where to compute.
        seed: of the prompts' words.
        on_progress: called with a description of the next step.
    """
    tokenizer: Any = AutoTokenizer.from_pretrained(model.base)

    def load() -> BatchingEngine:
        return BatchingEngine.from_models(
            model.load(dtype, device),
            tokenizer,
            RunnerOptions(max_model_len=context, max_num_seqs=SLOTS),
        )

    engine = run_in_fresh_thread(load)
    points = []
    for length in lengths:
        on_progress(f"{SLOTS} sequences of {length} tokens each")
        prompts = questions(tokenizer, SLOTS, length, seed)
        start = time.monotonic()
        tokens = _ask(engine, prompts, NEW)
        points.append(Point(length, tokens / (time.monotonic() - start)))
    engine.close()
    return points


def _ask(engine: BatchingEngine, prompts: Sequence[str], limit: int) -> int:
    roles = list(Role)
    sampling = Sampling(max_output_tokens=limit)
    requests = [Request(roles[i % 3], prompt, sampling) for i, prompt in enumerate(prompts)]
    generations = [engine.submit(request) for request in requests]
    return sum(generation.result().output_tokens for generation in generations)


def draw(file: Path, results: Sequence[Result], points: Sequence[Point]) -> None:
    """Plot tokens a second by the number of sequences, and by their length."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["svg.hashsalt"] = "helixq"  # the same picture has the same bytes
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    baseline, *batching = results
    complete = [r for r in batching if r.engine == BatchingEngine.name]
    at = [r.at_once for r in complete]
    left.plot(at, [r.tokens_a_second for r in complete], "o-", color="#1a6fc2", label="batching")
    left.axhline(
        baseline.tokens_a_second, color="#c2571a", linestyle=":", label="reference, one at a time"
    )
    left.set_xscale("log", base=2)
    left.set_xticks(at, [str(count) for count in at])
    left.set_xlabel("jobs at once")
    left.set_ylabel("new tokens a second, whole jobs")
    left.legend(fontsize=8)
    right.plot(
        [p.length for p in points], [p.tokens_a_second for p in points], "o-", color="#1a6fc2"
    )
    right.set_xlabel(f"tokens of each of {SLOTS} prompts")
    right.set_ylabel(f"new tokens a second, {NEW} after each")
    for axes in (left, right):
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)
