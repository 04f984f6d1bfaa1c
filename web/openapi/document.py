"""The description of an application in OpenAPI 3.1, made of its routes and of `OPERATIONS`.

The library `openapi-pydantic` has OpenAPI's objects as pydantic models, which check what is made here, and
collects the schemas of the models that validate requests.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

from flask import Flask
from openapi_pydantic import OpenAPI
from openapi_pydantic.util import PydanticSchema, construct_open_api_with_schema_class
from pydantic import BaseModel
from werkzeug.routing import Rule

from jobs.enums import Scope
from jobs.protocol import schemas
from web.openapi.operations import OPERATIONS
from web.openapi.operations.description import (
    BODY_ERRORS,
    COMMON_ERRORS,
    ERROR_SHAPES,
    ERRORS,
    TAGS,
    Operation,
    Parameter,
    Reply,
)
from web.openapi.operations.parameters import IDEMPOTENCY_KEY

_ABOUT = (
    "HelixQ answers questions the HelixNet way: an actor answers, a critic reviews the answer, and a "
    "regenerator writes an improved one. `/v1` is OpenAI's Responses API and its chat completions; `/api` "
    "is for audits."
)
#: One message of a stream; `data` is an event or a chunk as JSON.
_MESSAGE = {
    "type": "object",
    "properties": {name: {"type": "string"} for name in ("id", "event", "data")},
    "required": ["data"],
}


#: The schema of what is refused by name.
_ACCEPTS_NOTHING: dict[str, Any] = {"not": {}}
_NULL: dict[str, Any] = {"type": "null"}
#: The same for a parameter. Generators of clients need a type.
_NO_VALUE: dict[str, Any] = {"type": "string", **_ACCEPTS_NOTHING}
#: The schema of unknown members that are null: OpenAPI Generator's clients refuse `_NULL` by itself.
_NULL_ALONE: dict[str, Any] = {"enum": [None]}
#: The schema of an object with any members.
_OBJECT: dict[str, Any] = {"type": "object", "additionalProperties": True}


def describe(app: Flask) -> dict[str, Any]:
    """Return the description of an application as JSON."""
    paths: dict[str, dict[str, Any]] = {}
    for rule, method, operation in described_routes(app):
        path = paths.setdefault(_template(rule), {})
        path[method.lower()] = _operation(app, rule, method, operation)
    key = {
        "type": "http",
        "scheme": "bearer",
        "description": f"An API key, where the server requires one. Scopes: {', '.join(Scope)}.",
    }
    document = construct_open_api_with_schema_class(
        OpenAPI.model_validate(
            {
                "openapi": "3.1.1",
                "info": {
                    "title": "HelixQ",
                    "version": version("helixq"),
                    "description": _ABOUT,
                    "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
                },
                "servers": [{"url": "/"}],
                "tags": [{"name": name, "description": text} for name, text in TAGS.items()],
                "paths": paths,
                "components": {"securitySchemes": {"key": key}},
            }
        )
        # Without defaults: OpenAPI forbids some of them where they have no meaning.
    ).model_dump(mode="json", by_alias=True, exclude_none=True, exclude_unset=True)
    replies = {shape.__name__ for shape in _derived(schemas.Reply)}
    bodies = {each.body.__name__ for each in OPERATIONS.values() if each.body is not None}
    _suit_generators(document)
    for name, schema in document["components"]["schemas"].items():
        _simplify(schema)
        if name not in replies:
            _allow_nulls(schema, nested=name not in bodies)
    return document


def _derived(shape: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """Yield a model and all that are derived from it."""
    yield shape
    for each in shape.__subclasses__():
        yield from _derived(each)


def described_routes(app: Flask) -> Iterator[tuple[Rule, str, Operation]]:
    """Yield the routes of an application that have a description, once for each method."""
    for rule in app.url_map.iter_rules():
        operation = OPERATIONS.get(rule.endpoint)
        if operation is not None:
            for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"}):
                yield rule, method, operation


def _template(rule: Rule) -> str:
    """Return a route's path as OpenAPI has it."""
    return re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule)


def _operation(app: Flask, rule: Rule, method: str, operation: Operation) -> dict[str, Any]:
    summary, _, more = inspect.cleandoc(app.view_functions[rule.endpoint].__doc__ or "").partition(
        "\n\n"
    )
    blueprint, _, name = rule.endpoint.partition(".")
    path = [
        {"name": argument, "in": "path", "required": True, "schema": {"type": "string"}}
        for argument in sorted(rule.arguments)
    ]
    keyed = method == "POST" and operation.changes
    parameters = (*operation.parameters, *([IDEMPOTENCY_KEY] if keyed else []))
    described: dict[str, Any] = {
        "tags": [operation.tag],
        # Two paths can have the same endpoint.
        "operationId": "get" + re.sub(r"\W+", "_", _template(rule)).rstrip("_")
        if operation.is_open
        else name,
        # Plain text, unlike descriptions.
        "summary": " ".join(summary.replace("`", "").split()),
        "parameters": path + [_parameter(parameter) for parameter in parameters],
        "responses": _replies(operation, ERROR_SHAPES.get(blueprint), keyed=keyed),
        "security": [] if operation.is_open else [{}, {"key": []}],
    }
    if more:
        described["description"] = more.replace("``", "`")
    if operation.body is not None:
        described["requestBody"] = {"required": True, "content": _json(operation.body)}
    if operation.form is not None:
        content = {"multipart/form-data": {"schema": dict(operation.form)}}
        described["requestBody"] = {"required": True, "content": content}
    return described


def _parameter(parameter: Parameter) -> dict[str, Any]:
    described = {
        "name": parameter.name,
        "in": parameter.place,
        "required": False,
        "description": parameter.description,
        "schema": dict(parameter.schema),
    }
    if parameter.place == "query":
        described["allowEmptyValue"] = True  # It is the same as none.
    return described


def _replies(operation: Operation, error: type[BaseModel] | None, *, keyed: bool) -> dict[str, Any]:
    replies = {str(status): _reply(reply) for status, reply in operation.replies.items()}
    errors = {400} if operation.is_open else {*COMMON_ERRORS, *operation.errors}
    if operation.body is not None or operation.form is not None:
        errors.update(BODY_ERRORS)
    if keyed:
        errors.add(422)
    for status in sorted(errors):
        replies.setdefault(str(status), {"description": ERRORS[status], "content": _error(error)})
    return replies


def _reply(reply: Reply) -> dict[str, Any]:
    described: dict[str, Any] = {"description": reply.description}
    if reply.shape is not None:
        described["content"] = _json(reply.shape)
    if reply.media is not None:
        media = [reply.media] if isinstance(reply.media, str) else reply.media
        described["content"] = {each: {"schema": _content(each)} for each in media}
    if reply.streams:
        described["content"]["text/event-stream"] = {"schema": _MESSAGE}
    if reply.headers:
        described["headers"] = {
            name: {"description": text, "schema": {"type": "string"}}
            for name, text in reply.headers.items()
        }
    return described


def _content(media: str) -> dict[str, Any]:
    """Return the schema of what is not JSON: a text, or bytes to save as a file."""
    return {"type": "string"} if "text" in media else {"type": "string", "format": "binary"}


def _error(shape: type[BaseModel] | None) -> dict[str, Any]:
    if shape is None:
        return {"text/html": {"schema": {"type": "string"}}}
    if shape is schemas.Problem:
        return {"application/problem+json": {"schema": PydanticSchema(schema_class=shape)}}
    return _json(shape)


def _json(shape: type[BaseModel]) -> dict[str, Any]:
    return {"application/json": {"schema": PydanticSchema(schema_class=shape)}}


def _simplify(schema: dict[str, Any]) -> None:
    """Leave out titles, which repeat the names, and defaults of unions and constants.

    OpenAPI Generator's clients for Go do not compile with such defaults.
    """
    schema.pop("title", None)
    for each in schema.get("properties", {}).values():
        each.pop("title", None)
        if {"oneOf", "anyOf", "const"} & set(each):
            each.pop("default", None)


def _suit_generators(node: Any) -> None:
    """Write in another way what generators of clients misread.

    - Alternatives that accept nothing, ``{"not": {}}``, are left out. What accepts nothing at all stays.
    - Lists have ``anyOf``: OpenAPI Generator's TypeScript does not compile with lists of ``oneOf``.
    - A union of an object and one with any names is an object with any members, and the items of a list in a union
      have no type instead of any members: its Java does not compile with these unions, and its Go cannot read them.
    - Integers of more than 32 bits have the format ``int64``: without a format, its Java and Go read all others as
      errors.
    """
    if isinstance(node, dict):
        if node.get("type") == "integer" and not _has_32_bits(node):
            node["format"] = "int64"
        alternatives = node.get("anyOf", [])
        if any(map(_has_any_names, alternatives)) and any("$ref" in each for each in alternatives):
            del node["anyOf"]
            node.update(_OBJECT)
        for each in alternatives:
            if each.get("items") == _OBJECT:
                each["items"] = {}
        for key in ("anyOf", "oneOf"):
            if _ACCEPTS_NOTHING in node.get(key, []):
                node[key].remove(_ACCEPTS_NOTHING)
        items = node.get("items")
        if isinstance(items, dict) and "oneOf" in items:
            items["anyOf"] = items.pop("oneOf")
        for each in node.values():
            _suit_generators(each)
    elif isinstance(node, list):
        for each in node:
            _suit_generators(each)


def _has_32_bits(schema: dict[str, Any]) -> bool:
    least, most = schema.get("minimum"), schema.get("maximum")
    return least is not None and most is not None and least >= -(2**31) and most < 2**31


def _has_any_names(schema: dict[str, Any]) -> bool:
    return schema.get("type") == "object" and "properties" not in schema


def _allow_nulls(schema: dict[str, Any], *, nested: bool) -> None:
    """Say that null is the same as absent, as `jobs.protocol.validation` has it.

    Args:
        schema: of a request's object.
        nested: whether it is one within another. There, unknown members that are null are ignored too.
    """
    required = schema.get("required", [])
    for name, each in schema.get("properties", {}).items():
        # A schema without members allows all values.
        if each == _ACCEPTS_NOTHING:
            schema["properties"][name] = {"anyOf": [dict(_NO_VALUE), _NULL]}
        elif each and name not in required and _NULL not in each.get("anyOf", []):
            schema["properties"][name] = {"anyOf": [each, _NULL]}
    if nested and schema.get("additionalProperties") is False:
        schema["additionalProperties"] = dict(_NULL_ALONE)
