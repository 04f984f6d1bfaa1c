"""From a parsed body to a valid request, or to an error that names the first wrong parameter."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from jobs.protocol import options
from jobs.protocol.chat_request import CHAT_SUPPORTED, CreateChatCompletion
from jobs.protocol.errors import InvalidRequestError, invalid_value
from jobs.protocol.items import UNIONS, ItemReference, Message, without_nulls
from jobs.protocol.request import SUPPORTED, CreateResponse
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

#: What the parameters with the question must be.
_FORMS = {"input": "a string, or an array of messages", "messages": "an array of messages"}

Parameters = TypeVar("Parameters", bound=BaseModel)


def validate(data: dict[str, Any]) -> CreateResponse:
    """Check the parameters of a request.

    Raises:
        InvalidRequestError: a parameter is wrong, or asks for what is not offered.
        NotFoundError: there is no such model.
    """
    return validate_response(parse(CreateResponse, data, SUPPORTED), param="input")


def validate_chat(data: dict[str, Any]) -> CreateChatCompletion:
    """Check the parameters of a chat completion by themselves; `validate_response` checks the rest.

    Raises:
        InvalidRequestError: a parameter is wrong, or asks for what is not offered.
    """
    return parse(CreateChatCompletion, data, CHAT_SUPPORTED)


def validate_response(request: CreateResponse, *, param: str) -> CreateResponse:
    """Check what the types of a request's parameters do not say.

    Args:
        request: a parsed one.
        param: the parameter that has the question: ``input`` or ``messages``.

    Raises:
        InvalidRequestError: a parameter is wrong.
        NotFoundError: there is no such model.
    """
    if request.model is not None:
        check_model(request.model)
    if not request.refers_to_input:  # Otherwise it is checked once the references are resolved.
        check_question(request, param)
    check_metadata(request.metadata)
    return request


def check_question(request: CreateResponse, param: str) -> None:
    """Check that a request has a question, and has it where its context needs it.

    Args:
        request: without references to the input of earlier responses.
        param: the parameter that has the question: ``input`` or ``messages``.

    Raises:
        InvalidRequestError: it is not so.
    """
    if not request.question.strip():
        raise InvalidRequestError(
            f"The question is empty. `{param}` must be {_FORMS[param]} of which the last one with the "
            "role `user` has text.",
            code="empty_input",
            param=param,
        )
    _check_context(request, param)


def check_metadata(metadata: dict[str, str] | None) -> None:
    """Check what the type of `metadata` does not say.

    Raises:
        InvalidRequestError: it contains a NUL character.
    """
    for pair in (metadata or {}).items():
        if any("\0" in text for text in pair):
            raise invalid_value("metadata", "`metadata` must not contain NUL characters.")


def parse(
    model: type[Parameters], data: dict[str, Any], supported: Iterable[str] | None = None
) -> Parameters:
    """Check the types of a body's members.

    Args:
        model: has the parameters.
        data: the body.
        supported: the parameters that errors list, if not all of the model's.

    Raises:
        InvalidRequestError: a parameter is wrong.
    """
    _check_unicode(data)
    # Null is the same as absent, but a name that nobody knows is wrong whatever its value.
    data = {
        name: value if name == "metadata" else without_nulls(value)
        for name, value in data.items()
        if value is not None or name not in model.model_fields
    }
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise _translate(error.errors()[0], supported or model.model_fields) from error


def _check_context(request: CreateResponse, param: str) -> None:
    if request.asks_turns:
        items = [] if isinstance(request.input, str) else request.input
        role = next((role for item in reversed(items) if (role := _role_of_turn(item))), "user")
        if role != "user":
            raise invalid_value(
                param, "With `context: turns`, the last message must have the role `user`."
            )
    elif request.previous_response_id is not None:
        raise InvalidRequestError(
            "`previous_response_id` is not supported with `context: question`, which asks the last "
            "question alone. Leave `context` out.",
            code="unsupported_parameter",
            param="previous_response_id",
        )


def _role_of_turn(item: object) -> str | None:
    """Return whose turn an item is; None for what is no turn. A reference to no input is one to an answer or a draft."""
    if isinstance(item, ItemReference):
        return None if item.id.startswith("rs_") else "assistant"
    if isinstance(item, Message) and item.role in ("user", "assistant"):
        return item.role
    return None


def _check_unicode(data: dict[str, Any]) -> None:
    """Check that all texts are Unicode: they are stored, and errors quote names."""
    for name, value in data.items():
        if not _is_unicode(name):
            raise _not_unicode(None, "A name in the body")
        if _is_unicode(value):
            continue
        if name == "metadata" and isinstance(value, dict):
            for key, text in value.items():
                if not _is_unicode(key):
                    raise _not_unicode("metadata", "A name in `metadata`")
                if not _is_unicode(text):
                    raise _not_unicode(f"metadata.{key}")
        raise _not_unicode(name)


def _is_unicode(value: Any) -> bool:
    """Return whether no text in a JSON value has an unpaired surrogate, which JSON can spell."""
    try:
        (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)).encode()
    except UnicodeEncodeError:
        return False
    return True


def _not_unicode(param: str | None, subject: str | None = None) -> InvalidRequestError:
    message = f"{subject or f'`{param}`'} is not valid Unicode: it contains an unpaired surrogate."
    return invalid_value(param, message)


def _translate(error: ErrorDetails, supported: Iterable[str]) -> InvalidRequestError:
    """Turn an error of pydantic into one in the API's terms."""
    path = _path(error["loc"])
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
                names = ", ".join(f"`{name}`" for name in supported)
                message += f" The supported parameters are {names}."
        case options.UNSUPPORTED:
            message = f"This value of `{param}` is not supported. {error['ctx']['reason']}"
            code = "unsupported_parameter"
        case "list_type" if path[-1] in UNIONS:
            items = UNIONS[str(path[-1])]
            message = f"Invalid type for `{param}`: expected a string or an array of {items}."
            code = "invalid_type"
        case "too_long":
            maximum = error["ctx"]["max_length"]
            message = f"Invalid value for `{param}`: it has more than {maximum} entries."
            code = "invalid_value"
        case _ if kind in _TYPES:
            message, code = f"Invalid type for `{param}`: expected {_TYPES[kind]}.", "invalid_type"
        case _:
            # "Input should be less than 3", "String should have at most 5 characters"
            reason = "must " + error["msg"].partition(" should ")[2]
            message, code = f"Invalid {target} `{param}`: {reason}.", "invalid_value"
    return InvalidRequestError(message, code=code, param=param)


def _path(location: tuple[int | str, ...]) -> list[int | str]:
    """Return where a value is in the body, without the names that unions have in pydantic's locations."""
    path: list[int | str] = []
    previous: int | str | None = None
    for part in location:
        union = previous in UNIONS or isinstance(previous, int)
        if not (union and isinstance(part, str) and part.startswith("<")):
            path.append(part)
        previous = part
    return path
