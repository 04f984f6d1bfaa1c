"""How fast sequences are decoded, apart from their prompts: between all first tokens and the first end."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle

from jobs.pipeline import Role, Sampling
from worker.engine.batching.engine import BatchingEngine
from worker.engine.interface import Generation, Request

#: Seconds between two looks.
GLANCE = 0.0005
#: The most seconds until every sequence has its first token, and until a step ends.
PATIENCE, STEP = 60.0, 10.0


@dataclass(frozen=True)
class Mark:
    """Where an engine was when a step ended."""

    time: float
    steps: int
    computed: int


@dataclass(frozen=True)
class Decoded:
    """What was seen of decoding."""

    sequences: int
    seconds: float
    steps: int
    tokens: int
    #: Tokens of all sequences, prompts included, in the middle of it.
    context: float

    @property
    def tokens_a_second(self) -> float:
        return self.tokens / self.seconds


def asked(prompts: Sequence[str], limit: int) -> list[Request]:
    """Make a request of each prompt, the roles in turn: drawn as the card does."""
    return [
        Request(role, prompt, Sampling(max_output_tokens=limit, seed=i))
        for i, (prompt, role) in enumerate(zip(prompts, cycle(Role), strict=False))
    ]


def measure(engine: BatchingEngine, prompts: Sequence[str], steps: int) -> Decoded:
    """Decode all prompts together, and look at so many steps.

    The prompts are computed before, as requests of one token. What the engine remembers of them lets
    all sequences begin together, and where it remembers nothing, texts are long enough.

    Args:
        engine: idle.
        prompts: all different.
        steps: in which all sequences are to decode.
    """
    complete(engine, asked(prompts, 1))
    generations = [engine.submit(request) for request in asked(prompts, 3 * steps)]
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
    # Only texts were computed since: counted back from the end.
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
    """Wait for requests that are submitted together; return their prompts' tokens and new ones."""
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
    """Wait for the end of a step, or of a generation: after the last one there are no steps."""
    steps, end = engine.num_steps, time.monotonic() + STEP
    while engine.num_steps == steps and not any(g.finished for g in generations):
        if time.monotonic() > end:
            raise TimeoutError("the engine makes no steps")
        time.sleep(GLANCE)
    return Mark(time.monotonic(), engine.num_steps, engine.num_computed_tokens)
