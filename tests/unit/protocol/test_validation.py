"""Which requests are refused, and the parameter and code that the error names."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.protocol.errors import InvalidRequestError, NotFoundError
from jobs.protocol.validation import validate


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
            "input.0.content.0.type",
            "invalid_value",
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
