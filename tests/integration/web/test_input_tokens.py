"""Counting the tokens of a request without asking it."""

from __future__ import annotations

from openai.types.responses import InputTokenCountResponse

from tests.integration.web.client import Client
from tests.integration.web.with_keys import code


def test_tokens_are_counted_as_when_it_is_asked(web: Client) -> None:
    def count(**changes: object) -> tuple[int, int]:
        reply = web.post("/v1/responses/input_tokens", json={"input": "Why?", **changes})
        assert reply.status_code == 200, reply.text
        InputTokenCountResponse.model_validate(reply.json)
        return reply.json["input_tokens"], reply.json["max_input_tokens"]

    tokens, most = count()
    assert count(instructions="Be brief. " * 9)[0] > tokens
    assert count(max_output_tokens=100)[1] == most - 3 * (100 - 16)
    before = web.get("/v1/responses").json["data"]
    fits, question = 0, "Why?"
    while count(input=question)[0] <= most:
        fits, question = count(input=question)[0], question + " Why?" * 400
    assert fits > tokens
    refused = web.post("/v1/responses", json={"input": question, "background": True})
    assert code(refused) == (400, "context_length_exceeded")
    assert web.get("/v1/responses").json["data"] == before, "nothing is asked"


def test_what_would_be_refused_is_not_counted(web: Client) -> None:
    for body in ({}, {"input": ""}, {"input": "Why?", "model": "gpt"}, {"input": 1}):
        asked = web.post("/v1/responses", json=body)
        counted = web.post("/v1/responses/input_tokens", json=body)
        assert counted.status_code == asked.status_code
        assert counted.json == asked.json
