"""The limit of each stage depends on the room in the context. In these tests, each word is a token."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from jobs import pipeline
from jobs.pipeline import Role, Stage, Turn
from jobs.protocol.errors import InvalidRequestError
from jobs.protocol.limits import MIN_OUTPUT_TOKENS, RESERVED_TOKENS, fit
from jobs.protocol.request import CreateResponse
from jobs.protocol.tokens import TokenCounter


def max_output_tokens(request: CreateResponse, counter: TokenCounter) -> int:
    """The limit of a request without earlier turns."""
    limit, turns = fit(request, [], counter)
    assert turns == []
    return limit


#: Tokens of the longest prompt of a question of one word, without the texts of the stages.
PROMPT = len(
    pipeline.prompt(
        Stage(2, Role.REGENERATOR, 1), pipeline.DEFAULT_SYSTEM, "Why?", ["", ""]
    ).split()
)


def context_for(tokens: int) -> int:
    """Return the context in which each stage has room for this many tokens."""
    return PROMPT + RESERVED_TOKENS + 3 * tokens


def test_without_a_worker_nothing_is_checked(counter: TokenCounter) -> None:
    assert max_output_tokens(CreateResponse(input="Why?"), counter) == 1024
    request = CreateResponse(input="word " * 9999, max_output_tokens=9999)
    assert max_output_tokens(request, counter) == 9999


@pytest.mark.parametrize(
    ("available", "requested", "limit"),
    [
        (2000, None, 1024),
        (1024, None, 1024),
        (100, None, 100),
        (MIN_OUTPUT_TOKENS, None, MIN_OUTPUT_TOKENS),
        (100, 100, 100),
        (100, 1, 1),
        (1, 1, 1),
        (2000, 2000, 2000),
    ],
)
def test_requests_that_fit_the_context_are_accepted(
    counter: TokenCounter,
    serve: Callable[[int], None],
    available: int,
    requested: int | None,
    limit: int,
) -> None:
    serve(context_for(available))
    request = CreateResponse(input="Why?", max_output_tokens=requested)
    assert max_output_tokens(request, counter) == limit


@pytest.mark.parametrize(
    ("available", "requested", "param"),
    [
        (MIN_OUTPUT_TOKENS - 1, None, "input"),
        (-5, None, "input"),
        (MIN_OUTPUT_TOKENS - 1, 100, "input"),
        (0, 1, "input"),
        (100, 101, "max_output_tokens"),
    ],
)
def test_requests_that_do_not_fit_the_context_are_refused(
    counter: TokenCounter,
    serve: Callable[[int], None],
    available: int,
    requested: int | None,
    param: str,
) -> None:
    serve(context_for(available))
    request = CreateResponse(input="Why?", max_output_tokens=requested)
    with pytest.raises(InvalidRequestError) as excinfo:
        max_output_tokens(request, counter)
    assert (excinfo.value.param, excinfo.value.code) == (param, "context_length_exceeded")
    assert str(PROMPT) in excinfo.value.message
    assert str(context_for(available)) in excinfo.value.message


def test_the_system_prompt_counts(counter: TokenCounter, serve: Callable[[int], None]) -> None:
    serve(context_for(MIN_OUTPUT_TOKENS))
    request = CreateResponse(input="Why?", instructions="word " * PROMPT * 2)
    with pytest.raises(InvalidRequestError):
        max_output_tokens(request, counter)


#: Ten turns of ten tokens each, with their ``USER:`` and ``ASSISTANT:``.
TURNS = [Turn("user" if n % 2 == 0 else "assistant", "word " * 9) for n in range(10)]


@pytest.mark.parametrize(("room", "kept"), [(100, 10), (99, 9), (90, 9), (45, 4), (9, 0), (0, 0)])
def test_truncation_leaves_out_the_oldest_turns(
    counter: TokenCounter, serve: Callable[[int], None], room: int, kept: int
) -> None:
    serve(context_for(MIN_OUTPUT_TOKENS) + room)
    request = CreateResponse(input="Why?", context="turns", truncation="auto")
    limit, turns = fit(request, TURNS, counter)
    assert turns == TURNS[10 - kept :]
    assert limit == MIN_OUTPUT_TOKENS + (room - 10 * kept) // 3


def test_without_truncation_too_many_turns_are_refused(
    counter: TokenCounter, serve: Callable[[int], None]
) -> None:
    serve(context_for(MIN_OUTPUT_TOKENS) + 99)
    request = CreateResponse(input="Why?", context="turns")
    with pytest.raises(InvalidRequestError, match=r"turns before it.*`truncation`") as caught:
        fit(request, TURNS, counter)
    assert (caught.value.param, caught.value.code) == ("input", "context_length_exceeded")


def test_a_question_that_is_too_long_is_refused_whatever_its_turns(
    counter: TokenCounter, serve: Callable[[int], None]
) -> None:
    serve(context_for(MIN_OUTPUT_TOKENS) - 1)
    request = CreateResponse(input="Why?", context="turns", truncation="auto")
    with pytest.raises(InvalidRequestError, match="question is too long"):
        fit(request, TURNS, counter)
