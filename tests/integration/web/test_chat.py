"""Chat completions: the same jobs in OpenAI's older shape."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from openai.types.chat import (
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionDeleted,
    ChatCompletionStoreMessage,
)

from jobs.database import Database
from jobs.use_cases import stages
from jobs.use_cases.stages import Output
from tests.conftest import WORKER, new_database
from tests.integration.web.client import OUTPUT, Client, ask, finish, services_of, serving
from tests.servers import RedisServer

QUESTION = [{"role": "user", "content": "Why?"}]
REASONING = "ACTOR: A text.\n\nCRITIQUE: A text."


def answer(web: Client, database: Database, output: Output = OUTPUT, **body: Any) -> Any:
    """Ask, and run the stages as a worker does; return the reply's JSON, or the text of its stream."""
    with ThreadPoolExecutor(1) as pool:
        path, body = "/v1/chat/completions", {"messages": QUESTION, **body}
        asking = pool.submit(lambda: web.application.test_client().post(path, json=body))
        job_id = None
        while job_id is None:
            assert not asking.done(), asking.result().text
            job_id = next((job["id"] for job in web.get("/v1/responses").json["data"]), None)
        finish(database, job_id, output=output)
        reply = asking.result()
        assert reply.status_code == 200, reply.text
        return reply.text if body.get("stream") else reply.json


def chunks_of(text: str) -> list[dict[str, Any]]:
    messages = [line for line in text.split("\n\n") if line]
    assert messages.pop() == "data: [DONE]"
    return [json.loads(message.removeprefix("data: ")) for message in messages]


def test_the_regeneration_is_the_message(web: Client, database: Database) -> None:
    body = answer(web, database, metadata={"team": "blue"}, seed=7)
    ChatCompletion.model_validate(body)
    [choice] = body["choices"]
    assert choice["message"]["content"] == "A text."
    assert choice["message"]["reasoning_content"] == REASONING
    assert (choice["finish_reason"], body["context"]) == ("stop", "question")
    assert body["usage"]["total_tokens"] == 69
    assert body["metadata"] == {"team": "blue"}
    # OpenAI's description has it as a string that may be left out; clients that check replies refuse null.
    assert "system_fingerprint" not in body
    response = web.get("/v1/responses/resp_" + body["id"].removeprefix("chatcmpl-")).json
    assert (response["output"][-1]["content"][0]["text"], response["seed"]) == ("A text.", 7)


def test_a_completion_can_be_retrieved_and_deleted(web: Client, database: Database) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Why"}, {"type": "text", "text": "?"}], "type": "text"},
    ]  # fmt: skip
    body = answer(web, database, messages=messages)
    path = f"/v1/chat/completions/{body['id']}"
    assert web.get(path).json == body
    listed = web.get(f"{path}/messages").json["data"]
    for message in listed:
        ChatCompletionStoreMessage.model_validate({**message, "role": "assistant"})
    assert [(m["role"], m["content"]) for m in listed] == [("system", "Be brief."), ("user", "Why?")]  # fmt: skip
    page = web.get(f"{path}/messages?limit=1&order=desc").json
    assert (page["data"], page["has_more"]) == ([listed[1]], True)
    assert web.get(f"{path}/messages?after={listed[1]['id']}").json["data"] == []
    assert web.get(f"{path}/messages?after=x").json["error"]["param"] == "after"
    # Metadata are part of the record.
    assert web.post(path, json={"metadata": {}}).status_code == 405
    deleted = web.delete(path).json
    assert ChatCompletionDeleted.model_validate(deleted).id == body["id"]
    for gone in (path, f"{path}/messages"):
        assert web.get(gone).status_code == 404


def test_there_is_no_completion_without_an_answer(web: Client, database: Database) -> None:
    job_id = ask(web)["id"]
    path = f"/v1/chat/completions/chatcmpl-{job_id.removeprefix('resp_')}"
    reply = web.get(path)
    assert (reply.status_code, reply.json["error"]["code"]) == (409, "not_ended")
    claim = stages.claim(database, job_id, 0, WORKER, job_timeout=60)
    assert claim is not None
    stages.fail(database, claim, "server_error", "It broke.")
    reply = web.get(path)
    assert (reply.status_code, reply.headers["x-should-retry"]) == (500, "false")
    assert "It broke." in reply.json["error"]["message"]


def test_a_stream_has_the_same_texts(web: Client, database: Database) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    text = answer(web, database, stream=True, stream_options=options, rounds=1)
    chunks = chunks_of(text)
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks[:-1]]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == REASONING
    assert "".join(delta.get("content", "") for delta in deltas) == "A text."
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
    assert (chunks[-1]["choices"], chunks[-1]["usage"]["total_tokens"]) == ([], 69)
    assert {chunk["usage"] for chunk in chunks[:-1]} == {None}


def test_an_answer_that_was_truncated_says_so(web: Client, database: Database) -> None:
    output = Output("A te", [4], 20, 3, "length", 1024, 0.0)
    body = answer(web, database, output, max_completion_tokens=3)
    assert body["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("stop", "kept"),
    [
        ("\n\n", ["\n\n"]),
        (["Q:", "\0"], ["Q:", "\0"]),
        (["", "Q:"], ["Q:"]),
        ("", None),
        ([""], None),
        ([], None),
        (None, None),
    ],
)
def test_stop_strings_are_kept(web: Client, database: Database, stop: Any, kept: Any) -> None:
    body = answer(web, database, stop=stop)
    job_id = "resp_" + body["id"].removeprefix("chatcmpl-")
    assert web.get(f"/v1/responses/{job_id}").json["stop"] == kept
    assert web.get(f"/api/jobs/{job_id}").json["stop"] == kept
    page = web.get(f"/jobs/{job_id}").text
    assert ("Stop strings" in page) == (kept is not None)
    replay = web.post(f"/api/jobs/{job_id}/replay").json
    assert web.get(f"/api/jobs/{replay['id']}").json["stop"] == kept


def test_earlier_turns_are_asked_on_request(web: Client, database: Database) -> None:
    messages: list[dict[str, Any]] = [
        *QUESTION,
        {"role": "assistant", "content": "So.", "reasoning_content": "x"},
    ]
    messages.append({"role": "user", "content": [{"type": "text", "text": "How?"}]})
    body = answer(web, database, messages=messages, context="turns")
    history = web.get("/api/jobs/resp_" + body["id"].removeprefix("chatcmpl-")).json
    assert (
        "USER: Why? \nASSISTANT: So. \nUSER: How? \nASSISTANT: " in history["attempts"][0]["prompt"]
    )
    assert body["context"] == "turns"


def test_a_setting_asks_earlier_turns(
    redis_server: RedisServer, request: Any, tmp_path: Any
) -> None:
    url = new_database("sqlite", request, tmp_path)
    with serving(url, redis_server.url, CHAT_CONTEXT="turns") as web:
        headers = {"Idempotency-Key": "k"}
        services_of(web).waiter.stopping = lambda: True
        body = {"messages": [*QUESTION, {"role": "user", "content": "How?"}]}
        reply = web.post("/v1/chat/completions", json=body, headers=headers)
        assert (reply.status_code, reply.json["error"]["code"]) == (503, "unavailable")
        [job] = web.get("/v1/responses").json["data"]
        assert job["context"] == "turns"
        assert job["id"] in reply.json["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_job_without_an_answer_is_an_error(web: Client, database: Database, stream: bool) -> None:
    headers = {"Idempotency-Key": "k"}
    body = {"messages": QUESTION, "stream": stream}

    def ended(web: Client) -> Any:
        with ThreadPoolExecutor(1) as pool:
            client = web.application.test_client()
            asking = pool.submit(
                lambda: client.post("/v1/chat/completions", json=body, headers=headers)
            )
            while not (jobs := web.get("/v1/responses").json["data"]):
                assert not asking.done(), asking.result().text
            claim = stages.claim(database, jobs[0]["id"], 0, WORKER, job_timeout=60)
            assert claim is not None
            stages.fail(database, claim, "server_error", "It broke.")
            return asking.result()

    reply = ended(web)
    if stream:
        messages = [line.removeprefix("data: ") for line in reply.text.strip().split("\n\n")]
        error = json.loads(messages[-1])["error"]
    else:
        assert (reply.status_code, reply.headers["x-should-retry"]) == (500, "false")
        error = reply.json["error"]
    assert error["code"] == "server_error"
    assert "It broke." in error["message"]


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({}, "messages", "missing_required_parameter"),
        ({"messages": "Why?"}, "messages", "invalid_type"),
        ({"messages": []}, "messages", "empty_input"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages", "empty_input"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role", "unsupported_parameter"),
        ({"messages": [{"role": "user", "content": "x", "type": "image"}]}, "messages.0.type", "unsupported_parameter"),
        ({"messages": [{"role": "user", "refusal": 3}]}, "messages.0.refusal", "invalid_type"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages.0.content.0",
            "unsupported_parameter",
        ),
        ({"messages": QUESTION, "odd": 1}, "odd", "unknown_parameter"),
        ({"messages": QUESTION, "n": 2}, "n", "unsupported_parameter"),
        ({"messages": QUESTION, "stop": 5}, "stop", "invalid_type"),
        ({"messages": QUESTION, "stop": ["a", "b", "c", "d", "e"]}, "stop", "invalid_value"),
        ({"messages": QUESTION, "stop": ["a", "x" * 257]}, "stop.1", "invalid_value"),
        ({"messages": QUESTION, "stop": ["a", 1]}, "stop.1", "invalid_type"),
        ({"messages": QUESTION, "stop": "x" * 257}, "stop", "invalid_value"),
        ({"messages": QUESTION, "logprobs": True}, "logprobs", "unsupported_parameter"),
        ({"messages": QUESTION, "tools": [{}]}, "tools", "unsupported_parameter"),
        (
            {"messages": QUESTION, "response_format": {"type": "json_object"}},
            "response_format",
            "unsupported_parameter",
        ),
        ({"messages": QUESTION, "max_tokens": 0}, "max_tokens", "invalid_value"),
        (
            {"messages": QUESTION, "max_tokens": 99999},
            "max_completion_tokens",
            "context_length_exceeded",
        ),
        (
            {"messages": [{"role": "user", "content": "why " * 9999}]},
            "messages",
            "context_length_exceeded",
        ),
        ({"messages": QUESTION, "model": "gpt-5"}, "model", "model_not_found"),
    ],
)  # fmt: skip
def test_a_wrong_parameter_is_named(
    web: Client, body: dict[str, Any], param: str, code: str
) -> None:
    reply = web.post("/v1/chat/completions", json=body)
    error = reply.json["error"]
    assert (error["param"], error["code"]) == (param, code), error["message"]
    assert reply.status_code == (404 if code == "model_not_found" else 400)
    assert "`input`" not in error["message"]


def test_parameters_that_ask_for_nothing_are_accepted(web: Client, database: Database) -> None:
    answer(
        web,
        database,
        model="helixnet",
        n=1,
        stop=None,
        logit_bias={},
        logprobs=False,
        top_logprobs=0,
        presence_penalty=0,
        frequency_penalty=0.0,
        tools=[],
        tool_choice="auto",
        parallel_tool_calls=True,
        response_format={"type": "text"},
        modalities=["text"],
        reasoning_effort="low",
        verbosity="medium",
        service_tier="auto",
        store=False,
        user="u",
        stream_options=None,
        max_tokens=50,
    )
