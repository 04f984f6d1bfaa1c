"""From a valid request to a job: defaults for the parameters that it does not set."""

from __future__ import annotations

import secrets
from typing import TypeVar

from jobs import pipeline
from jobs.pipeline import Sampling, Turn
from jobs.protocol.limits import fit
from jobs.protocol.request import CreateResponse
from jobs.protocol.tokens import TokenCounter
from jobs.use_cases.requests import Keyed
from jobs.use_cases.submission import NewJob

T = TypeVar("T")


def new_job(
    request: CreateResponse,
    counter: TokenCounter,
    turns: list[Turn] | None = None,
    keyed: Keyed | None = None,
) -> NewJob:
    """Return the job that a request asks for.

    Args:
        request: a valid one.
        counter: counts the tokens of the prompts.
        turns: the turns before the question; None if the context is the question alone.
        keyed: the request, if it has an idempotency key.

    Raises:
        InvalidRequestError: the request does not fit the model's context.
    """
    defaults = Sampling()
    fitting = fit(request, turns or [], counter)
    return NewJob(
        question=request.question,
        system=request.system_prompt,
        sampling=Sampling(
            temperature=_or(request.temperature, defaults.temperature),
            top_k=_or(request.top_k, defaults.top_k),
            top_p=_or(request.top_p, defaults.top_p),
            max_output_tokens=fitting.max_output_tokens,
            seed=_or(request.seed, secrets.randbits(32)),
            stop=request.stop_strings,
        ),
        rounds=_or(request.rounds, 1),
        priority=_or(request.priority, pipeline.DEFAULT_PRIORITY),
        background=bool(request.background),
        metadata=request.metadata or {},
        input_items=request.input_items,
        turns=None if turns is None else fitting.turns,
        previous_response_id=request.previous_response_id,
        options=request.repeated(),
        keyed=keyed,
    )


def _or(value: T | None, default: T) -> T:
    return default if value is None else value
