"""From a parsed body to a valid request, or to an error that names the first wrong parameter."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from jobs.protocol.errors import InvalidRequestError
from jobs.protocol.request import UNIONS, CreateResponse
from jobs.protocol.served_models import check_model

#: What a parameter should be, for each of pydantic's errors about types.
_TYPES = {
    "bool_type": "a boolean",
    "dict_type": "an object",
    "float_type": "a number",
    "int_type": "an integer",
    "list_type": "an array",
    "model_type": "an object",
    "string_type": "a string",
}


def validate(data: dict[str, Any]) -> CreateResponse:
    """Check the parameters of a request.

    Raises:
        InvalidRequestError: a parameter is wrong.
        NotFoundError: there is no such model.
    """
    metadata = data.get("metadata")
    _check_names("", data)
    _check_names("metadata", metadata if isinstance(metadata, dict) else ())
    # Null is the same as absent.
    fields = CreateResponse.model_fields
    data = {name: value for name, value in data.items() if value is not None or name not in fields}
    try:
        request = CreateResponse.model_validate(data)
    except ValidationError as error:
        raise _translate(error.errors()[0]) from error
    if request.model is not None:
        check_model(request.model)
    if not request.question.strip():
        raise InvalidRequestError(
            "The question is empty. `input` must be a string, or an array of messages of which the "
            "last one with the role `user` has text.",
            code="empty_input",
            param="input",
        )
    _check_text("input", request.question)
    _check_text("instructions", request.system_prompt)
    for pair in (request.metadata or {}).items():
        for text in pair:
            _check_text("metadata", text)
            if "\0" in text:
                raise InvalidRequestError(
                    "`metadata` must not contain NUL characters.",
                    code="invalid_value",
                    param="metadata",
                )
    return request


def _check_names(param: str, names: Iterable[str]) -> None:
    """Check that names of parameters are Unicode: errors quote them."""
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError as error:
            location = f"`{param}`" if param else "the body"
            raise _not_unicode(param or None, f"A name in {location}") from error


def _check_text(param: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _not_unicode(param) from error


def _not_unicode(param: str | None, subject: str | None = None) -> InvalidRequestError:
    message = f"{subject or f'`{param}`'} is not valid Unicode: it contains an unpaired surrogate."
    return InvalidRequestError(message, code="invalid_value", param=param)


def _translate(error: ErrorDetails) -> InvalidRequestError:
    """Turn an error of pydantic into one in the API's terms."""
    # In a location, "input" and "content" are followed by the kind of value, which is no parameter.
    previous = (None, *error["loc"])
    path = [
        part for before, part in zip(previous, error["loc"], strict=False) if before not in UNIONS
    ]
    target = "value for"
    if path[-1] == "[key]" and len(path) > 2:
        path, target = path[:-2], "key in"
    param = ".".join(str(part) for part in path)
    kind = error["type"]
    match kind:
        case "missing":
            message, code = f"Missing required parameter: `{param}`.", "missing_required_parameter"
        case "extra_forbidden":
            message, code = f"Unknown parameter: `{param}`.", "unknown_parameter"
            if len(path) == 1:
                names = ", ".join(f"`{name}`" for name in CreateResponse.model_fields)
                message += f" The supported parameters are {names}."
        case "list_type" if path[-1] in UNIONS:
            items = "messages" if path[-1] == "input" else "parts"
            message = f"Invalid type for `{param}`: expected a string or an array of {items}."
            code = "invalid_type"
        case "too_long":
            maximum = error["ctx"]["max_length"]
            message = f"Invalid value for `{param}`: it has more than {maximum} entries."
            code = "invalid_value"
        case "string_unicode":
            return _not_unicode(param)
        case _ if kind in _TYPES:
            message, code = f"Invalid type for `{param}`: expected {_TYPES[kind]}.", "invalid_type"
        case _:
            # "Input should be less than 3", "String should have at most 5 characters"
            reason = "must " + error["msg"].partition(" should ")[2]
            message, code = f"Invalid {target} `{param}`: {reason}.", "invalid_value"
    return InvalidRequestError(message, code=code, param=param)
