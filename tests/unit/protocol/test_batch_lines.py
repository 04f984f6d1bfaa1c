"""Lines of a batch's input: what is accepted, and what is wrong with the others."""

from __future__ import annotations

import json
from typing import Any

import pytest

from jobs.protocol.batch_lines import (
    CHAT,
    MAX_CUSTOM_ID,
    RESPONSES,
    body_of,
    custom_id_of,
    parse_line,
    to_request,
)
from jobs.protocol.errors import ProtocolError
from jobs.protocol.request import CreateResponse

BODY = {"model": "helixnet", "input": "Why?"}
LINE: dict[str, Any] = {"custom_id": "a", "method": "POST", "url": RESPONSES, "body": BODY}
CHAT_BODY = {"model": "helixnet", "messages": [{"role": "user", "content": "Why?"}]}


def check(text: str, endpoint: str = RESPONSES) -> CreateResponse:
    data = parse_line(text.encode())
    custom_id_of(data)
    return to_request(body_of(data, endpoint), endpoint, "question")


def error_of(line: dict[str, Any], endpoint: str = RESPONSES) -> tuple[str, str | None]:
    with pytest.raises(ProtocolError) as caught:
        check(json.dumps(line), endpoint)
    return caught.value.code, caught.value.param


def test_a_line_becomes_a_request_of_the_lowest_priority() -> None:
    request = check(json.dumps(LINE))
    assert (request.question, request.priority) == ("Why?", 0)
    chat = check(json.dumps({**LINE, "url": CHAT, "body": CHAT_BODY}), CHAT)
    assert (chat.question, chat.priority, chat.context) == ("Why?", 0, "question")


def test_a_number_without_a_fraction_is_an_integer() -> None:
    sent = json.dumps({**LINE, "body": {**BODY, "seed": 622.0, "max_output_tokens": 100.0}})
    assert "622.0" in sent
    request = check(sent)
    assert (request.seed, request.max_output_tokens) == (622, 100)


@pytest.mark.parametrize(
    "text", ["{", "", "[1]", "nonsense", "[" * 100_000, "\x00", '{"a": 1}}', '{"a": NaN}']
)
def test_what_is_no_json_object_is_refused(text: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        check(text)
    assert caught.value.code == "invalid_json_line"


@pytest.mark.parametrize("name", ["custom_id", "method", "url", "body"])
def test_every_member_is_required(name: str) -> None:
    for line in ({k: v for k, v in LINE.items() if k != name}, {**LINE, name: None}):
        assert error_of(line) == ("missing_required_parameter", name)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"method": "GET"}, ("invalid_method", "method")),
        ({"url": CHAT}, ("invalid_url", "url")),
        ({"url": "/v1/embeddings"}, ("invalid_url", "url")),
        ({"custom_id": 1}, ("invalid_value", "custom_id")),
        ({"custom_id": ""}, ("invalid_value", "custom_id")),
        ({"custom_id": "x" * (MAX_CUSTOM_ID + 1)}, ("invalid_value", "custom_id")),
        ({"custom_id": "\ud800"}, ("invalid_value", "custom_id")),
        ({"body": "Why?"}, ("invalid_type", "body")),
        ({"headers": {}}, ("unknown_parameter", None)),
    ],
)
def test_wrong_members_are_refused_by_name(
    changes: dict[str, Any], expected: tuple[str, str | None]
) -> None:
    assert error_of({**LINE, **changes}) == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"input": " "}, ("empty_input", "input")),
        ({"temperature": 3}, ("invalid_value", "temperature")),
        ({"model": "gpt-4o"}, ("model_not_found", "model")),
        ({"tools": [{"type": "web_search"}]}, ("unsupported_parameter", "tools")),
        ({"surprise": 1}, ("unknown_parameter", "surprise")),
        ({"stream": True}, ("unsupported_parameter", "stream")),
        ({"priority": 9}, ("unsupported_parameter", "priority")),
    ],
)
def test_bodies_are_checked_as_those_of_single_requests(
    changes: dict[str, Any], expected: tuple[str, str | None]
) -> None:
    assert error_of({**LINE, "body": {**BODY, **changes}}) == expected


def test_parameters_that_mean_nothing_in_a_batch_are_accepted() -> None:
    body = {**BODY, "stream": False, "background": True, "priority": None, "store": True}
    assert check(json.dumps({**LINE, "body": body})).background


def test_errors_of_chats_name_the_parameters_of_chats() -> None:
    line = {**LINE, "url": CHAT, "body": {**CHAT_BODY, "messages": []}}
    assert error_of(line, CHAT) == ("empty_input", "messages")
