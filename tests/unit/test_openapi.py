"""The description of the API has every endpoint, and every parameter that is validated."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from flask import Flask

from jobs import settings
from jobs.protocol.chat_request import CreateChatCompletion
from jobs.protocol.request import CreateResponse
from web import create_app
from web.openapi.document import describe
from web.openapi.operations import OPERATIONS

#: Blueprints that are not described: what they serve is for browsers.
PAGES = {"pages", "login", "openapi"}
#: How names of operations begin.
VERBS = (
    *("add", "cancel", "count", "create", "delete", "download", "erase", "export", "get", "list"),
    *("pause", "redeliver", "replay", "resume", "retrieve", "retry", "rotate", "test", "update"),
    "upload",
)
#: A schema that generated clients read as bytes.
BYTES = {"type": "string", "format": "binary"}


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
    schemathesis.openapi.from_dict(document).validate()
    operations = [each for path in document["paths"].values() for each in path.values()]
    names = [operation["operationId"] for operation in operations]
    assert len(names) == len(set(names))
    # Generated clients have functions of these names.
    assert not [name for name in names if not re.fullmatch(rf"({'|'.join(VERBS)})_\w+", name)]
    assert all(operation["summary"] for operation in operations)
    assert not [o["summary"] for o in operations if "`" in o["summary"]], "it is plain text"


@pytest.mark.parametrize("model", [CreateResponse, CreateChatCompletion])
def test_parameters_are_those_that_are_validated(document: dict[str, Any], model: Any) -> None:
    schema = document["components"]["schemas"][model.__name__]
    assert list(schema["properties"]) == list(model.model_fields)
    assert schema["additionalProperties"] is False


def test_no_body_has_further_members(document: dict[str, Any]) -> None:
    for operation in filter(None, (each.body for each in OPERATIONS.values())):
        schema = document["components"]["schemas"][operation.__name__]
        assert schema["additionalProperties"] is False, operation


def test_values_that_ask_for_nothing(document: dict[str, Any]) -> None:
    parameters = document["components"]["schemas"]["CreateResponse"]["properties"]
    null = {"type": "null"}
    assert parameters["tools"] == {"anyOf": [{"type": "array", "items": {}, "maxItems": 0}, null]}
    assert parameters["tool_choice"] == {"anyOf": [{"enum": ["auto", "none"]}, null]}
    chat = document["components"]["schemas"]["CreateChatCompletion"]["properties"]
    assert chat["modalities"]["anyOf"][0] == {
        "type": "array",
        "items": {"enum": ["text"]},
        "maxItems": 1,
    }
    assert chat["logit_bias"]["anyOf"][0]["maxProperties"] == 0
    assert chat["response_format"]["anyOf"][0]["properties"]["type"]["anyOf"][0] == {
        "type": "string",  # Without it, generated clients have no name for its values.
        "enum": ["text"],
    }
    assert chat["web_search_options"]["anyOf"] == [{"type": "string", "not": {}}, null]
    assert chat["logprobs"]["anyOf"][0] == {"type": "boolean", "not": {"const": True}}
    assert chat["n"]["anyOf"][0] == {"type": "integer", "minimum": 1, "maximum": 1}


def test_an_empty_question_is_not_valid(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    text, items = schemas["CreateResponse"]["properties"]["input"]["oneOf"]
    assert (text["minLength"], items["minItems"]) == (1, 1)
    assert schemas["CreateChatCompletion"]["properties"]["messages"]["minItems"] == 1


def test_every_tag_is_described_and_used(document: dict[str, Any]) -> None:
    operations = [each for path in document["paths"].values() for each in path.values()]
    used = {tag for operation in operations for tag in operation["tags"]}
    assert {tag["name"] for tag in document["tags"]} == used
    assert all(tag["description"].endswith(".") for tag in document["tags"])


def test_generators_of_clients_can_name_everything(document: dict[str, Any]) -> None:
    """openapi-python-client leaves out what it cannot name, and every operation that uses it."""
    # Names that its own modules have.
    assert not {"Client", "File", "Response", "Unset"} & set(document["components"]["schemas"])
    # Names that every file has, in Java and C#.
    assert not {"Exception", "Object", "System"} & set(document["components"]["schemas"])

    def schemas_in(value: Any) -> Iterator[dict[str, Any]]:
        if isinstance(value, dict):
            yield value
        for each in value.values() if isinstance(value, dict) else value:
            if isinstance(each, dict | list):
                yield from schemas_in(each)

    for schema in schemas_in(document["components"]["schemas"]):
        if isinstance(properties := schema.get("properties"), dict):
            # OpenAPI Generator's clients for Python refuse these.
            assert {"type": "null"} not in properties.values(), properties
            for name in schema.get("required", []):
                assert not isinstance(properties[name].get("const"), bool), (name, properties)
        # Those for TypeScript import a class `Null`, and functions of unions, that they do not have.
        assert schema.get("additionalProperties") != {"type": "null"}, schema
        assert "oneOf" not in schema.get("items", {}), schema
        # Those for Go do not compile with these.
        if {"oneOf", "anyOf", "const"} & set(schema):
            assert "default" not in schema, schema
        if isinstance(values := schema.get("enum"), list):
            # OpenAPI Generator's for Java do not compile with constants that are no texts.
            assert values == [None] or {type(value) for value in values} == {str}, schema
        alternatives = schema.get("anyOf", [])
        assert {} not in alternatives, "linters warn of it"
        # Nor do they with these, and those for Go cannot read them.
        assert not [a for a in alternatives if a.get("items", {}).get("additionalProperties")]
        if any("$ref" in each for each in alternatives):
            assert not [a for a in alternatives if a.get("additionalProperties")], schema
        properties = schema.get("properties")
        if isinstance(properties, dict) and isinstance(schema.get("type"), str):
            names = [re.sub(r"\W", "", name) for name in properties]
            assert len(names) == len(set(names)), properties


def test_generated_clients_can_read_large_integers(document: dict[str, Any]) -> None:
    """OpenAPI Generator's clients for Java and Go read an integer without a format as one of 32 bits."""
    schemas = document["components"]["schemas"]
    large = {"type": "integer", "format": "int64"}
    assert schemas["ResponseObject"]["properties"]["seed"] == large
    assert schemas["CreateResponse"]["properties"]["seed"]["anyOf"][0].items() > large.items()
    [listed] = [
        p for p in document["paths"]["/api/jobs"]["get"]["parameters"] if p["name"] == "limit"
    ]
    assert "format" not in listed["schema"], "it is at most 100"


@pytest.mark.parametrize(
    ("path", "media", "schema"),
    [
        ("/v1/files/{file_id}/content", "application/octet-stream", BYTES),
        ("/api/jobs/export", "application/jsonl", BYTES),
        ("/metrics", "text/plain", {"type": "string"}),
    ],
)
def test_generated_clients_can_read_what_is_not_json(
    document: dict[str, Any], path: str, media: str, schema: dict[str, str]
) -> None:
    """Without a type, OpenAPI Generator's clients for Python refuse the reply."""
    assert document["paths"][path]["get"]["responses"]["200"]["content"][media]["schema"] == schema
