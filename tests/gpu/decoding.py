"""Decode speed without prefills: from the last first token to the first end of a sequence."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle

from jobs.pipeline import Role, Sampling
from worker.engine.batching.engine import BatchingEngine
from worker.engine.interface import Generation, Request

#: Seconds between two polls.
GLANCE = 0.0005
#: Maximum seconds until every sequence has its first token, and until a step ends.
PATIENCE, STEP = 60.0, 10.0
#: Maximum new tokens of a sequence, for each measured step: no sequence ends before all have begun.
MAX_OUTPUTS = 3


@dataclass(frozen=True)
class Mark:
    """An engine's counters at the end of a step."""

    time: float
    steps: int
    computed: int


@dataclass(frozen=True)
class Decoded:
    """A measurement of decoding."""

    sequences: int
    seconds: float
    steps: int
    tokens: int
    #: Tokens of all sequences, prompts included, halfway through the measurement.
    context: float

    @property
    def tokens_a_second(self) -> float:
        return self.tokens / self.seconds


def make_requests(prompts: Sequence[str], limit: int) -> list[Request]:
    """Return a request for each prompt, the roles in turn, sampled as in the card's program."""
    return [
        Request(role, prompt, Sampling(max_output_tokens=limit, seed=i))
        for i, (prompt, role) in enumerate(zip(prompts, cycle(Role), strict=False))
    ]


def measure(engine: BatchingEngine, prompts: Sequence[str], steps: int) -> Decoded:
    """Decode all prompts together, and measure so many steps.

    The prompts are computed first, as requests of one token. Their cached prefixes let all sequences start
    together; without them, texts are long enough.

    Args:
        engine: idle.
        prompts: all different.
        steps: number of steps in which all sequences decode.
    """
    complete(engine, make_requests(prompts, 1))
    generations = [
        engine.submit(request) for request in make_requests(prompts, MAX_OUTPUTS * steps)
    ]
    _until_all_began(generations)
    first = last = _mark(engine, generations)
    while last.steps - first.steps < steps:
        mark = _mark(engine, generations)
        if any(generation.finished for generation in generations):
            break
        last = mark
    for generation in generations:
        generation.cancel()
    completions = [generation.result(PATIENCE) for generation in generations]
    # Only output tokens were computed since: count back from the end.
    since = engine.num_computed_tokens - (first.computed + last.computed) / 2
    context = sum(c.prompt_tokens + c.output_tokens for c in completions) - since
    if last.steps == first.steps:
        raise RuntimeError("a sequence ended before all had begun")
    return Decoded(
        len(prompts),
        last.time - first.time,
        last.steps - first.steps,
        last.computed - first.computed,
        context,
    )


def complete(engine: BatchingEngine, requests: Sequence[Request]) -> tuple[int, int]:
    """Run requests together; return the number of their prompt tokens and of their new tokens."""
    generations = [engine.submit(request) for request in requests]
    end = time.monotonic() + PATIENCE
    completions = [g.result(max(0, end - time.monotonic())) for g in generations]
    return sum(c.prompt_tokens for c in completions), sum(c.output_tokens for c in completions)


def _until_all_began(generations: Sequence[Generation]) -> None:
    end = time.monotonic() + PATIENCE
    for generation in generations:
        while not generation.deltas_from(0) and not generation.finished:
            if time.monotonic() > end:
                raise TimeoutError("not every sequence has begun")
            time.sleep(GLANCE)


def _mark(engine: BatchingEngine, generations: Sequence[Generation]) -> Mark:
    """Wait for the end of a step, or of a generation: after the last one there are no more steps."""
    steps, end = engine.num_steps, time.monotonic() + STEP
    while engine.num_steps == steps and not any(g.finished for g in generations):
        if time.monotonic() > end:
            raise TimeoutError("the engine makes no steps")
        time.sleep(GLANCE)
    return Mark(time.monotonic(), engine.num_steps, engine.num_computed_tokens)
