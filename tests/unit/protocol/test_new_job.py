"""The job that a request asks for."""

from __future__ import annotations

from jobs.pipeline import DEFAULT_SYSTEM, MAX_SEED, Sampling
from jobs.protocol.new_job import new_job
from jobs.protocol.request import CreateResponse
from jobs.protocol.tokens import TokenCounter
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
    )
    assert new_job(request, counter, "key", "digest") == NewJob(
        question="Why?",
        system="",
        sampling=Sampling(temperature=0, top_k=0, top_p=0.5, max_output_tokens=33, seed=0),
        rounds=5,
        priority=0,
        background=True,
        metadata={"team": "blau"},
        idempotency_key="key",
        request_digest="digest",
    )
