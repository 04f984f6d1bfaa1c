"""Which requests are refused, and the parameter and code that the error names."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
from openai.types.beta.beta_response_input_item_param import BetaResponseInputItemParam
from openai.types.beta.response_create_params import (
    ResponseCreateParamsStreaming as BetaResponseCreateParams,
)
from openai.types.chat.chat_completion_content_part_param import ChatCompletionContentPartParam
from openai.types.chat.chat_completion_message_param import ChatCompletionMessageParam
from openai.types.chat.completion_create_params import CompletionCreateParamsStreaming
from openai.types.responses.input_token_count_params import InputTokenCountParams
from openai.types.responses.response_create_params import ResponseCreateParamsStreaming
from openai.types.responses.response_input_content_param import ResponseInputContentParam
from openai.types.responses.response_input_item_param import ResponseInputItemParam
from pydantic import BaseModel, ValidationError
from typing_extensions import is_typeddict

from jobs.protocol.chat_request import CreateChatCompletion
from jobs.protocol.errors import InvalidRequestError, NotFoundError
from jobs.protocol.request import CreateResponse
from jobs.protocol.validation import validate, validate_chat


def test_null_is_the_same_as_absent() -> None:
    request = validate({"input": "Why?", "seed": None, "metadata": None, "model": None})
    assert request == validate({"input": "Why?"})


def test_all_parameters_are_accepted() -> None:
    request = validate(
        {
            "input": "Why?",
            "instructions": "",
            "model": "helixnet",
            "background": True,
            "stream": False,
            "temperature": 0,
            "top_p": 1,
            "top_k": 0,
            "max_output_tokens": 1,
            "seed": 2**53 - 1,
            "rounds": 5,
            "priority": 9,
            "metadata": {"team": "blau"},
        }
    )
    assert (request.temperature, request.seed, request.metadata) == (0, 2**53 - 1, {"team": "blau"})


@pytest.mark.parametrize(
    ("data", "param", "code"),
    [
        ({}, "input", "missing_required_parameter"),
        ({"input": None}, "input", "missing_required_parameter"),
        ({"input": ""}, "input", "empty_input"),
        ({"input": " \n\t"}, "input", "empty_input"),
        ({"input": []}, "input", "empty_input"),
        ({"input": [{"role": "assistant", "content": "x"}]}, "input", "empty_input"),
        ({"input": 5}, "input", "invalid_type"),
        ({"input": ["x"]}, "input.0", "invalid_type"),
        ({"input": [{"role": "wizard", "content": "x"}]}, "input.0.role", "invalid_value"),
        ({"input": [{"content": "x"}]}, "input.0.role", "missing_required_parameter"),
        ({"input": [{"role": "user"}]}, "input.0.content", "missing_required_parameter"),
        ({"input": [{"role": "user", "content": 1}]}, "input.0.content", "invalid_type"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "text": "x"}]}]},
            "input.0.content.0",
            "unsupported_parameter",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "poem", "text": "x"}]}]},
            "input.0.content.0.type",
            "invalid_value",
        ),
        (
            {"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}]},
            "input.0",
            "unsupported_parameter",
        ),
        (
            {"input": [{"role": "user", "content": "x", "odd": 1}]},
            "input.0.odd",
            "unknown_parameter",
        ),
        (
            {
                "input": [
                    {
                        "role": "user",
                        "content": [{"type": "input_text", "text": "x", "annotations": 1}],
                    }
                ]
            },
            "input.0.content.0.annotations",
            "invalid_type",
        ),
        ({"input": "x", "temprature": 1}, "temprature", "unknown_parameter"),
        ({"input": "x", "temperature": "hot"}, "temperature", "invalid_type"),
        ({"input": "x", "temperature": True}, "temperature", "invalid_type"),
        ({"input": "x", "temperature": -1}, "temperature", "invalid_value"),
        ({"input": "x", "temperature": 2.1}, "temperature", "invalid_value"),
        ({"input": "x", "temperature": float("nan")}, "temperature", "invalid_value"),
        ({"input": "x", "top_p": 0}, "top_p", "invalid_value"),
        ({"input": "x", "top_k": 1.5}, "top_k", "invalid_type"),
        ({"input": "x", "max_output_tokens": 0}, "max_output_tokens", "invalid_value"),
        ({"input": "x", "seed": -1}, "seed", "invalid_value"),
        ({"input": "x", "seed": 2**53}, "seed", "invalid_value"),
        ({"input": "x", "rounds": 6}, "rounds", "invalid_value"),
        ({"input": "x", "priority": 10}, "priority", "invalid_value"),
        ({"input": "x", "background": "yes"}, "background", "invalid_type"),
        ({"input": "x", "instructions": 1}, "instructions", "invalid_type"),
        ({"input": "x", "metadata": []}, "metadata", "invalid_type"),
        ({"input": "x", "metadata": {"a": 1}}, "metadata.a", "invalid_type"),
        ({"input": "x", "metadata": {"a": "x" * 513}}, "metadata.a", "invalid_value"),
        ({"input": "x", "metadata": {"a" * 65: "x"}}, "metadata", "invalid_value"),
        ({"input": "x", "metadata": {"a": "\0"}}, "metadata", "invalid_value"),
        ({"input": "x", "metadata": {"\0": "a"}}, "metadata", "invalid_value"),
        ({"input": "x", "metadata": {str(n): "" for n in range(17)}}, "metadata", "invalid_value"),
        ({"input": "half \ud800"}, "input", "invalid_value"),
        ({"input": "x", "instructions": "half \ud800"}, "instructions", "invalid_value"),
        ({"input": "x", "half \ud800": 1}, None, "invalid_value"),
        ({"input": "x", "metadata": {"half \ud800": "1"}}, "metadata", "invalid_value"),
        ({"input": "x", "metadata": {"a": "half \ud800"}}, "metadata.a", "invalid_value"),
    ],
)
def test_a_wrong_parameter_is_named(data: dict[str, Any], param: str | None, code: str) -> None:
    with pytest.raises(InvalidRequestError) as excinfo:
        validate(data)
    error = excinfo.value
    assert (error.param, error.code) == (param, code), error.message
    assert error.message.endswith(".")
    assert (param or "the body") in error.message
    assert "Message" not in error.message, "names of our classes are not passed on"
    assert "Input" not in error.message, "nor are pydantic's"
    assert "must ." not in error.message


#: Parameters of the client's functions that it sends as headers.
HEADERS = {"betas"}
#: What clients send by themselves, or send back of an earlier response.
NEUTRAL: list[dict[str, Any]] = [
    {"include": [], "tools": [], "tool_choice": "auto", "parallel_tool_calls": True},
    {"include": ["reasoning.encrypted_content"], "store": False, "text": {}},
    {"text": {"format": {"type": "text"}, "verbosity": "medium"}, "truncation": "auto"},
    {"reasoning": {"effort": "high", "summary": "auto"}, "service_tier": "auto", "user": "u"},
    {"safety_identifier": "s", "prompt_cache_key": "k", "prompt_cache_retention": "24h"},
    {"stream_options": {"include_obfuscation": False}, "top_logprobs": 0, "max_tool_calls": 3},
    {"presence_penalty": 0, "frequency_penalty": 0.0, "context_management": [], "prompt": None},
    {"tool_choice": "none", "service_tier": "default", "text": {"format": None}, "tools": None},
    {"reasoning": {"effort": None}, "previous_response_id": None, "conversation": None},
    {"prompt_cache_options": {"mode": "implicit", "ttl": "12h", "prewarm": False}},
    {
        "prompt_cache_options": {"comparison_response_id": "resp_1"},
        "moderation": None,
        "image": None,
    },
    {"image": {"context_compression": "auto"}, "access_programs": {"cyber": "standard"}},
    {"background_options": {"completion_window": "soonest", "continuation_id": "c"}},
    {"image": {}, "access_programs": {}, "background_options": {}, "multi_agent": {}},
    {"multi_agent": {"enabled": False, "max_concurrent_subagents": 3}},
]


@pytest.mark.parametrize("options", NEUTRAL)
def test_parameters_that_ask_for_nothing_are_accepted(options: dict[str, Any]) -> None:
    assert validate({"input": "Why?", **options}).question == "Why?"


@pytest.mark.parametrize(
    "parameters",
    [
        ResponseCreateParamsStreaming,
        BetaResponseCreateParams,
        InputTokenCountParams,
        CompletionCreateParamsStreaming,
    ],
)
def test_null_is_accepted_for_every_parameter_of_openais_client(parameters: type) -> None:
    nulls = dict.fromkeys(set(parameters.__annotations__) - HEADERS)
    assert {"model", "tools", "reasoning", "reasoning_effort"} & {*nulls}
    if "messages" in nulls:
        validate_chat({**nulls, "messages": [{"role": "user", "content": "Why?"}]})
    else:
        assert validate({**nulls, "input": "Why?"}) == validate({"input": "Why?"})


def members(kind: Any) -> Iterator[Any]:
    """Yield what a type of openai's is a union of: literals, and classes."""
    kind = getattr(kind, "__value__", kind)  # an alias
    if get_origin(kind) is Literal:
        yield from get_args(kind)
    elif get_args(kind):
        for each in get_args(kind):
            yield from members(each)
    else:
        yield kind


def hints(kind: type) -> dict[str, list[Any]]:
    """Return what the members of a typed dictionary of openai's may be."""
    return {name: list(members(hint)) for name, hint in get_type_hints(kind).items()}


@pytest.mark.parametrize(
    ("parameters", "model"),
    [
        (ResponseCreateParamsStreaming, CreateResponse),
        (BetaResponseCreateParams, CreateResponse),
        (InputTokenCountParams, CreateResponse),
        (CompletionCreateParamsStreaming, CreateChatCompletion),
    ],
)
def test_every_member_of_every_option_of_openais_client_is_known(
    parameters: type, model: type[BaseModel]
) -> None:
    for name, kinds in hints(parameters).items():
        if name in HEADERS:
            continue
        objects = [kind for kind in kinds if is_typeddict(kind)]
        if name in ("input", "messages") or not objects:
            continue
        annotated = members(model.model_fields[name].annotation)
        ours = [each for each in annotated if isinstance(each, type(BaseModel))]
        if ours:
            names = {each for kind in objects for each in hints(kind)}
            assert names <= ours[0].model_fields.keys(), name
        with pytest.raises(ValidationError) as caught:
            model.model_validate({name: {"type": "odd", "odd": 1}})
        assert any(error["loc"][0] == name for error in caught.value.errors()), name


def test_every_item_and_part_of_openais_client_is_known() -> None:
    question = {"role": "user", "content": "Why?"}
    for kind in [*members(ResponseInputItemParam), *members(BetaResponseInputItemParam)]:
        for name in hints(kind)["type"]:
            if name in ("message", "item_reference", "reasoning", type(None)):
                continue
            with pytest.raises(InvalidRequestError) as caught:
                validate({"input": [{"type": name}, question]})
            assert (caught.value.param, caught.value.code) == ("input.0", "unsupported_parameter")
    parts: list[tuple[Callable[[dict[str, Any]], object], str, Any]] = [
        (validate, "input", ResponseInputContentParam),
        (validate_chat, "messages", ChatCompletionContentPartParam),
    ]
    for check, param, union in parts:
        for kind in members(union):
            [name] = hints(kind)["type"]
            message = {"role": "user", "content": [{"type": name, "text": "Why?"}]}
            if name in ("input_text", "text"):
                check({param: [message]})
                continue
            with pytest.raises(InvalidRequestError) as caught:
                check({param: [message]})
            assert caught.value.code == "unsupported_parameter"
            assert caught.value.param == f"{param}.0.content.0"
    for kind in members(ChatCompletionMessageParam):
        for role in hints(kind)["role"]:
            message = {"role": role, "content": "x"}
            if role not in ("tool", "function"):
                validate_chat({"messages": [message, question]})
                continue
            with pytest.raises(InvalidRequestError) as caught:
                validate_chat({"messages": [message, question]})
            assert caught.value.param == "messages.0.role"


def test_items_of_earlier_responses_are_accepted() -> None:
    items = [
        {"role": "user", "content": "Why?", "phase": None},
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "x"}]},
        {"type": "reasoning", "id": "rs_1", "content": [{"type": "reasoning_text", "text": "x"}],
         "summary": [], "encrypted_content": None, "status": "completed"},
        {"type": "item_reference", "id": "msg_1"},
        {"id": "msg_1"},
        {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed",
         "phase": "final_answer", "content": [
             {"type": "output_text", "text": "So.", "annotations": [], "logprobs": None},
             {"type": "refusal", "refusal": "No."}]},
        {"role": "user", "content": [{"type": "input_text", "text": "How?"}]},
    ]  # fmt: skip
    request = validate({"input": items})
    assert request.question == "How?"
    assert [message.text for message in request.messages] == ["Why?", "So.No.", "How?"]


def test_what_clients_note_in_an_answer_that_they_send_back_is_left_out() -> None:
    notes: dict[str, Any] = {"started_at": 1.5, "attributes": {"type": "x"}, "_tag": "", "odd": [1]}
    items = [
        {"type": "reasoning", "id": "rs_1", "content": [], "summary": None, **notes},
        {"type": "message", "role": "assistant", **notes, "content": [
            # What OpenAI's `responses.parse` adds, and what agents repeat of a chat completion's message.
            {"type": "output_text", "text": "So.", "annotations": [], "parsed": {"a": 1}},
            {"type": "text", "text": "So", "role": "assistant", "reasoning_content": "x", "refusal": None},
            {"type": "refusal", "refusal": "No.", **notes}]},
        {"role": "user", "content": "How?"},
    ]  # fmt: skip
    request = validate({"input": items})
    assert [message.text for message in request.messages] == ["So.SoNo.", "How?"]
    assert request.input_items == [
        {"type": "reasoning", "id": "rs_1", "content": []},
        {"type": "message", "role": "assistant", "content": [
            {"type": "output_text", "text": "So.", "annotations": []},
            {"type": "text", "text": "So"},
            {"type": "refusal", "refusal": "No."}]},
        {"role": "user", "content": "How?"},
    ]  # fmt: skip
    messages = [
        {"role": "assistant", "content": "So.", "reasoning_details": [{}], "timestamp": 3},
        {"role": "assistant", "content": items[1]["content"], **notes},
        {"role": "user", "content": "How?"},
    ]
    chat = validate_chat({"messages": messages}).to_response("turns")
    assert [message.text for message in chat.messages] == ["So.", "So.SoNo.", "How?"]


@pytest.mark.parametrize("role", ["user", "system", "developer"])
def test_what_only_a_question_could_mean_is_refused(role: str) -> None:
    cached = {"type": "ephemeral"}
    part = {"type": "text", "text": "Why?", "cache_control": cached}
    for message, param in [
        ({"role": role, "content": "Why?", "attachments": [1]}, "attachments"),
        ({"role": role, "content": [{**part, "image": "x"}]}, "content.0.image"),
    ]:
        for check, name in [(validate, "input"), (validate_chat, "messages")]:
            question = {"role": "user", "content": [part], "cache_control": cached}
            check({name: [question]})
            with pytest.raises(InvalidRequestError) as caught:
                check({name: [message, question]})
            assert (caught.value.param, caught.value.code) == (
                f"{name}.0.{param}",
                "unknown_parameter",
            )


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "name": "f"}}, "tool_choice"),
        ({"text": {"format": {"type": "json_schema", "schema": {}}}}, "text.format"),
        ({"text": {"format": {"schema": {}}}}, "text.format"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"service_tier": "flex"}, "service_tier"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"previous_response_id": "resp_1", "context": "question"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"context_management": [{"type": "compaction"}]}, "context_management"),
        ({"moderation": {"model": "m"}}, "moderation"),
        ({"image": {"context_compression": "enabled"}}, "image.context_compression"),
        (
            {"background_options": {"completion_window": "8h"}},
            "background_options.completion_window",
        ),
        ({"access_programs": {"cyber": "daybreak_red"}}, "access_programs.cyber"),
        ({"prompt_cache_options": {"prewarm": True}}, "prompt_cache_options.prewarm"),
        ({"multi_agent": {"enabled": True}}, "multi_agent.enabled"),
        ({"personality": "friendly"}, "personality"),
    ],
)
def test_what_is_not_offered_is_refused_by_name(options: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequestError, match="not supported") as caught:
        validate({"input": "Why?", **options})
    assert (caught.value.param, caught.value.code) == (param, "unsupported_parameter")
    assert f"`{param}`" in caught.value.message


@pytest.mark.parametrize(
    ("options", "param", "code"),
    [
        ({"tools": "web_search"}, "tools", "invalid_type"),
        ({"truncation": "some"}, "truncation", "invalid_value"),
        ({"text": "text"}, "text", "invalid_type"),
        ({"text": {"odd": 1}}, "text.odd", "unknown_parameter"),
        ({"prompt_cache_options": {"odd": 1}}, "prompt_cache_options.odd", "unknown_parameter"),
        ({"reasoning": {"effort": 3}}, "reasoning.effort", "invalid_type"),
        ({"stream_options": {"include_usage": True}}, "stream_options.include_usage", "unknown_parameter"),
        ({"include": "x"}, "include", "invalid_type"),
        ({"include": [1]}, "include.0", "invalid_type"),
        ({"user": "u" * 513}, "user", "invalid_value"),
        ({"user": "half \ud800"}, "user", "invalid_value"),
        ({"odd": None}, "odd", "unknown_parameter"),
        ({"context": "all"}, "context", "invalid_value"),
    ],
)  # fmt: skip
def test_a_wrong_option_is_named(options: dict[str, Any], param: str, code: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        validate({"input": "Why?", **options})
    assert (caught.value.param, caught.value.code) == (param, code), caught.value.message


def test_with_turns_the_question_comes_last() -> None:
    items = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    assert validate({"input": items}).question == "Why?"
    with pytest.raises(InvalidRequestError, match="last message") as caught:
        validate({"input": items, "context": "turns"})
    assert caught.value.param == "input"
    items.append({"role": "developer", "content": "Rhyme."})
    validate({"input": [*items[:1], items[2]], "context": "turns"})


def test_another_model_is_not_found() -> None:
    with pytest.raises(NotFoundError) as excinfo:
        validate({"input": "Why?", "model": "gpt-5"})
    assert (excinfo.value.param, excinfo.value.code) == ("model", "model_not_found")
    assert "helixnet" in excinfo.value.message


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "Missing required parameter: `input`."),
        (
            {"input": 5},
            "Invalid type for `input`: expected a string or an array of messages.",
        ),
        (
            {"input": "x", "temperature": 2.1},
            "Invalid value for `temperature`: must be less than or equal to 2.",
        ),
        (
            {"input": "x", "top_k": 1.5},
            "Invalid type for `top_k`: expected an integer.",
        ),
        (
            {"input": "x", "metadata": {"a" * 65: ""}},
            "Invalid key in `metadata`: must have at most 64 characters.",
        ),
        (
            {"input": "x", "metadata": {str(n): "" for n in range(17)}},
            "Invalid value for `metadata`: it has more than 16 entries.",
        ),
    ],
)
def test_messages_say_what_is_allowed(data: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequestError) as excinfo:
        validate(data)
    assert excinfo.value.message == message


@pytest.mark.parametrize("item", ["[]", "1", "{}", '{"role": "user", "content": [1, 1, 1]}'])
def test_a_wrong_list_is_read_to_its_first_error(
    item: str,
) -> None:
    """A body within the limit may have half a million of them, and errors cost most."""
    many = json.loads(f"[{','.join([item] * 1000)}]")
    for model, body in (
        (CreateResponse, {"input": many}),
        (CreateChatCompletion, {"messages": many}),
        (CreateResponse, {"input": "Why?", "include": many}),
    ):
        with pytest.raises(ValidationError) as raised:
            model.model_validate(body)
        assert raised.value.error_count() < 10
