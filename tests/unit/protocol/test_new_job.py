"""The job that a request asks for."""

from __future__ import annotations

from typing import Any

from jobs.pipeline import DEFAULT_SYSTEM, MAX_SEED, Sampling
from jobs.protocol.new_job import new_job
from jobs.protocol.request import CreateResponse
from jobs.protocol.tokens import TokenCounter
from jobs.protocol.validation import validate
from jobs.use_cases.requests import Keyed
from jobs.use_cases.submission import NewJob


def test_defaults_are_the_model_cards(counter: TokenCounter) -> None:
    job = new_job(CreateResponse(input="Why?"), counter)
    seed = job.sampling.seed
    assert job == NewJob(
        question="Why?",
        system=DEFAULT_SYSTEM,
        sampling=Sampling(seed=seed),
        rounds=1,
        priority=5,
        background=False,
        metadata={},
        options={},
    )
    assert 0 <= seed <= MAX_SEED
    assert new_job(CreateResponse(input="Why?"), counter).sampling.seed != seed, "it is random"


def test_parameters_of_the_request_apply(counter: TokenCounter) -> None:
    request = CreateResponse(
        input="Why?",
        instructions="",
        background=True,
        temperature=0,
        top_p=0.5,
        top_k=0,
        max_output_tokens=33,
        seed=0,
        rounds=5,
        priority=0,
        metadata={"team": "blau"},
        stop=["a", "b"],
    )
    keyed = Keyed("owner", "key", "digest")
    assert new_job(request, counter, None, keyed) == NewJob(
        question="Why?",
        system="",
        sampling=Sampling(
            temperature=0, top_k=0, top_p=0.5, max_output_tokens=33, seed=0, stop=("a", "b")
        ),
        rounds=5,
        priority=0,
        background=True,
        metadata={"team": "blau"},
        options={},
        keyed=keyed,
    )


def test_messages_are_kept_as_they_were_sent(counter: TokenCounter) -> None:
    items: list[dict[str, Any]] = [
        {"role": "user", "content": "Why?"},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"type": "item_reference", "id": "msg_1"},
        {"role": "user", "content": [{"type": "input_text", "text": "How?"}], "phase": None},
    ]
    job = new_job(validate({"input": items}), counter)
    assert (job.question, job.turns) == ("How?", None)
    assert job.input_items == [*items[:3], {key: items[3][key] for key in ("role", "content")}]


def test_parameters_that_change_nothing_are_kept_where_they_differ(counter: TokenCounter) -> None:
    data: dict[str, Any] = {
        "input": "Why?",
        "tool_choice": "auto",
        "truncation": "disabled",
        "user": "u1",
    }
    data |= {"reasoning": {"effort": "low"}, "tools": [], "include": ["x"], "store": False}
    assert new_job(validate(data), counter).options == {
        "tool_choice": "auto",
        "user": "u1",
        "reasoning": {"effort": "low", "summary": None},
    }
