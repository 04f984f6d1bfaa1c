"""How many tokens a stage may generate, so that all stages of a job fit the model's context."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import NamedTuple

from jobs import pipeline
from jobs.pipeline import Role, Sampling, Stage, Turn
from jobs.protocol.errors import InvalidRequestError
from jobs.protocol.request import CreateResponse
from jobs.protocol.tokens import TokenCount, TokenCounter

#: The minimum for each stage when the request sets no limit.
MIN_OUTPUT_TOKENS = 16
#: Tokens of the context that are kept free: joined texts can have more tokens than the texts alone.
RESERVED_TOKENS = 8


class Fit(NamedTuple):
    """The parts of a request that fit the model's context."""

    #: The maximum number of new tokens of each stage.
    max_output_tokens: int
    #: The turns before the question; with ``truncation: auto``, without the oldest ones.
    turns: list[Turn]


def fit(request: CreateResponse, turns: list[Turn], counter: TokenCounter) -> Fit:
    """Return the parts of a request that fit the model's context.

    The last prompt contains the answer and the critique, and the context also holds the
    regeneration: three texts of ``max_output_tokens``.

    Args:
        request: a valid one.
        turns: the turns before the question.
        counter: counts the tokens of the prompts.

    Raises:
        InvalidRequestError: the question, its turns, or the limit that the request sets, are too large.
    """
    requested = request.max_output_tokens
    default = Sampling().max_output_tokens
    count = _count(request, turns, counter)
    if count is None:
        return Fit(requested or default, turns)  # The engine checks it once there is one.
    if request.truncation == "auto" and turns:
        turns, count = _truncate(request, turns, counter, count)
    prompt, available = max(count.tokens), _available(count)
    if available < MIN_OUTPUT_TOKENS and (requested or MIN_OUTPUT_TOKENS) > available:
        what = "The question is too long: its prompt"
        advice = "Shorten the question."
        if turns:
            what = "The question and the turns before it are too long: their prompt"
            advice = "Send fewer turns, or set `truncation` to `auto`."
        raise InvalidRequestError(
            f"{what} has {prompt} tokens, and the model's context of "
            f"{count.context} tokens must also hold the answer, the critique and the regeneration. "
            f"{advice}",
            code="context_length_exceeded",
            param="input",
        )
    if requested is not None and requested > available:
        raise InvalidRequestError(
            f"`max_output_tokens` is too large: {requested}. The prompt has {prompt} tokens, so the "
            f"model's context of {count.context} tokens has room for at most {available} tokens per "
            "stage.",
            code="context_length_exceeded",
            param="max_output_tokens",
        )
    return Fit(requested or min(default, available), turns)


class Size(NamedTuple):
    """How long a prompt is, and how long it may be."""

    tokens: int
    #: With a longer one, the texts of all stages would not fit the model's context.
    max_tokens: int


def measure(request: CreateResponse, turns: list[Turn], counter: TokenCounter) -> Size | None:
    """Return the size of a request's longest prompt, with an empty answer and an empty critique.

    Args:
        request: a valid one.
        turns: the turns before the question.
        counter: counts the tokens of the prompts.

    Returns:
        None if no worker has ever started: then the model is not known.
    """
    count = _count(request, turns, counter)
    if count is None:
        return None
    needed = len(Role) * (request.max_output_tokens or MIN_OUTPUT_TOKENS) + RESERVED_TOKENS
    return Size(max(count.tokens), max(0, count.context - needed))


def _truncate(
    request: CreateResponse, turns: list[Turn], counter: TokenCounter, count: TokenCount
) -> tuple[list[Turn], TokenCount]:
    """Leave out as few of the oldest turns as needed, or all of them if even that is not enough."""
    needed = request.max_output_tokens or MIN_OUTPUT_TOKENS
    if _available(count) >= needed:
        return turns, count

    def fits(first: int) -> bool:
        counted = _count(request, turns[first:], counter)
        return counted is None or _available(counted) >= needed

    first = bisect.bisect_left(range(len(turns)), True, lo=1, key=fits)
    return turns[first:], _count(request, turns[first:], counter) or count


def _count(
    request: CreateResponse, turns: Sequence[Turn], counter: TokenCounter
) -> TokenCount | None:
    return counter.count(_prompts(request, turns))


def _prompts(request: CreateResponse, turns: Sequence[Turn]) -> list[str]:
    """Return the prompts of all roles with an empty answer and an empty critique."""
    return [
        pipeline.prompt(Stage(2, role, 1), request.system_prompt, request.question, ["", ""], turns)
        for role in Role
    ]


def _available(count: TokenCount) -> int:
    return (count.context - max(count.tokens) - RESERVED_TOKENS) // len(Role)
