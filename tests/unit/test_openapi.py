"""The description of the API has every endpoint, and every parameter that is validated."""

from __future__ import annotations

from typing import Any

import pytest
from flask import Flask
from openapi_pydantic import OpenAPI

from jobs import settings
from jobs.protocol.chat_request import CreateChatCompletion
from jobs.protocol.request import CreateResponse
from web import create_app
from web.openapi.document import describe
from web.openapi.operations import OPERATIONS, PAGES


@pytest.fixture(scope="module")
def app() -> Flask:
    return create_app(settings.load({"HELIXQ_DATABASE_URL": "sqlite:////nowhere/jobs.sqlite3"}))


@pytest.fixture(scope="module")
def document(app: Flask) -> dict[str, Any]:
    return describe(app)


def test_every_endpoint_is_described(app: Flask) -> None:
    endpoints = {rule.endpoint for rule in app.url_map.iter_rules()} - {"static"}
    of_the_api = {name for name in endpoints if name.partition(".")[0] not in PAGES}
    assert of_the_api == set(OPERATIONS)


def test_it_is_valid(document: dict[str, Any]) -> None:
    assert OpenAPI.model_validate(document).openapi == "3.1.1"
    operations = [each for path in document["paths"].values() for each in path.values()]
    names = [operation["operationId"] for operation in operations]
    assert len(names) == len(set(names))
    assert all(operation["summary"] for operation in operations)


@pytest.mark.parametrize("model", [CreateResponse, CreateChatCompletion])
def test_parameters_are_those_that_are_validated(document: dict[str, Any], model: Any) -> None:
    schema = document["components"]["schemas"][model.__name__]
    assert list(schema["properties"]) == list(model.model_fields)
    assert schema["additionalProperties"] is False


def test_values_that_ask_for_nothing(document: dict[str, Any]) -> None:
    parameters = document["components"]["schemas"]["CreateResponse"]["properties"]
    null = {"type": "null"}
    assert parameters["tools"] == {"anyOf": [{"type": "array", "items": {}, "enum": [[]]}, null]}
    assert parameters["tool_choice"] == {"anyOf": [{"enum": ["auto", "none"]}, null]}
