"""OpenAI's parameters that HelixQ does not offer, and the values of them that ask for nothing.

Clients send many of them without being asked. A value that would not change the answer is accepted, and
responses repeat it. Any other is refused by name: a client that asked for a tool must not get a text
that looks as if there had been none to call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from jobs.protocol.base import RequestObject
from jobs.tlog.canonical import MAX_INTEGER

#: The type of errors about values that ask for what is not offered.
UNSUPPORTED = "unsupported"


def unsupported(reason: str) -> PydanticCustomError:
    """Return the error for a value that asks for what is not offered.

    Args:
        reason: a sentence that says what is not offered, or what to do instead.
    """
    return PydanticCustomError(UNSUPPORTED, "{reason}", {"reason": reason})


@dataclass(frozen=True, eq=False)  # hashed by identity: schemas are not hashable
class Accepted:
    """The values of a parameter that ask for nothing."""

    accepts: Callable[[Any], bool]
    #: The same as JSON Schema, for the description of the API.
    schema: dict[str, Any]

    def __call__(self, value: Any) -> bool:
        return self.accepts(value)


def one_of(*values: Any) -> Accepted:
    """Accept these values."""
    return Accepted(lambda value: value in values, {"enum": list(values)})


#: Null, false, 0, and what has nothing in it.
is_empty = Accepted(lambda value: not value, {"enum": [False, 0, "", [], {}]})
#: Plain text as a format of answers.
is_text_format = Accepted(
    lambda value: value in ({}, {"type": "text"}),
    {
        "type": "object",
        "properties": {"type": {"anyOf": [{"type": "string", "enum": ["text"]}, {"type": "null"}]}},
        "additionalProperties": False,
    },
)
nothing = Accepted(lambda _: False, {"not": {}})


#: Python's types of JSON Schema's.
_TYPES: dict[str, tuple[type, ...]] = {
    "array": (list,),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
    "object": (dict,),
    "string": (str,),
}


@dataclass(frozen=True, eq=False)  # hashed by identity: schemas are not hashable
class Neutral:
    """Annotates a type: refuses all values but those that ask for nothing."""

    accepts: Callable[[Any], bool]
    reason: str

    def _validate(self, value: Any) -> Any:
        if not self.accepts(value):
            raise unsupported(self.reason)
        return value

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._validate, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        described = handler(schema)
        if isinstance(self.accepts, Accepted):
            described = {**described, **self.accepts.schema}
        kind = _TYPES.get(described.get("type", ""))
        if kind and "enum" in described:
            described["enum"] = [value for value in described["enum"] if type(value) in kind]
        return _nameable(described)


#: The schemas of values that are empty, by type.
_EMPTY: dict[type, dict[str, Any]] = {
    list: {"type": "array", "items": {}, "maxItems": 0},
    dict: {"type": "object", "maxProperties": 0},
}


def _nameable(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema whose ``enum`` has texts alone: generators of clients cannot name other values."""
    kind, values = schema.get("type"), schema.get("enum", [])
    rest = {name: value for name, value in schema.items() if name != "enum"}
    if kind is None and len({type(value) for value in values}) > 1:
        return {**rest, "anyOf": [_EMPTY.get(type(value), {"const": value}) for value in values]}
    if kind == "boolean" and values == [False]:
        return {**rest, "not": {"const": True}}
    if kind in ("integer", "number") and len(values) == 1:
        return {**rest, "minimum": values[0], "maximum": values[0]}
    if kind not in ("array", "object") or not values:
        return schema
    if kind == "object":
        return {**rest, "maxProperties": 0}
    items = [item for value in values for item in value]
    return {
        **rest,
        "maxItems": max(map(len, values)),
        **({"items": {"enum": items}} if items else {}),
    }


def neutral(accepts: Callable[[Any], bool], reason: str) -> Neutral:
    """Return an annotation that refuses all values but those that ask for nothing.

    Args:
        accepts: returns whether a value is accepted; if it is `Accepted`, the description of the API says so.
        reason: of the error (`unsupported`).
    """
    return Neutral(accepts, reason)


_NO_TOOLS = "The model calls no tools. Leave the parameter out."
TEXT_ONLY = "Answers are plain text."

Tools = Annotated[list[Any], neutral(is_empty, "The model calls no tools. Send an empty array.")]
ToolChoice = Annotated[Any, neutral(one_of("auto", "none"), _NO_TOOLS)]
ServiceTier = Annotated[str, neutral(one_of("auto", "default"), "Use `auto` or `default`.")]
TopLogprobs = Annotated[
    int, neutral(is_empty, "Answers come without probabilities of tokens. Use 0.")
]
Verbosity = Annotated[str, neutral(one_of("medium"), "State the length in the question.")]
Moderation = Annotated[Any, neutral(is_empty, "Texts are not moderated. Leave it out.")]


Penalty = Annotated[float, neutral(is_empty, "Tokens are not penalized. Use 0.")]
#: An integer that changes nothing. Programs in all languages can read it back.
Whole = Annotated[int, Field(ge=-MAX_INTEGER, le=MAX_INTEGER)]
#: A client's name for a user or a cache.
Label = Annotated[str, Field(max_length=512)]


class PromptCacheOptions(RequestObject):
    """The parameter ``prompt_cache_options``: when prompts are cached, which changes no text."""

    mode: Label | None = None
    ttl: Label | None = None
    comparison_response_id: Label | None = None
    prewarm: (
        Annotated[bool, neutral(is_empty, "Every request asks its question. Leave it out.")] | None
    ) = None


class CommonOptions(RequestObject):
    """The options that responses and chat completions share."""

    tools: Tools | None = None
    tool_choice: ToolChoice = None
    parallel_tool_calls: bool | None = None
    top_logprobs: TopLogprobs | None = None
    service_tier: ServiceTier | None = None
    #: All jobs are stored.
    store: bool | None = None
    user: Label | None = None
    safety_identifier: Label | None = None
    prompt_cache_key: Label | None = None
    prompt_cache_retention: Label | None = None
    prompt_cache_options: PromptCacheOptions | None = None
    moderation: Moderation = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None


class TextOptions(RequestObject):
    """The parameter ``text`` of a response."""

    format: Annotated[dict[str, Any], neutral(is_text_format, TEXT_ONLY)] | None = None
    verbosity: Verbosity | None = None


class ReasoningOptions(RequestObject):
    """The parameter ``reasoning`` of a response. Drafts and critiques are always there, and always whole."""

    effort: Label | None = None
    summary: Label | None = None
    generate_summary: Label | None = None
    context: Label | None = None
    mode: Label | None = None


class StreamOptions(RequestObject):
    """The parameter ``stream_options`` of a response."""

    include_obfuscation: bool | None = None


class ImageOptions(RequestObject):
    """The parameter ``image`` of a response: of images that it is sent."""

    context_compression: (
        Annotated[str, neutral(one_of("auto", "disabled"), "Questions have no images.")] | None
    ) = None


class BackgroundOptions(RequestObject):
    """The parameter ``background_options`` of a response."""

    completion_window: (
        Annotated[str, neutral(one_of("soonest"), "Jobs run as soon as they can. Use `soonest`.")]
        | None
    ) = None
    continuation_id: Label | None = None


class AccessPrograms(RequestObject):
    """The parameter ``access_programs`` of a response."""

    cyber: Annotated[str, neutral(one_of("standard"), "Use `standard`.")] | None = None


class MultiAgentOptions(RequestObject):
    """The parameter ``multi_agent`` of a response, of the client's beta."""

    enabled: (
        Annotated[
            bool,
            neutral(is_empty, "Actor, critic and regenerator answer. Leave the parameter out."),
        ]
        | None
    ) = None
    max_concurrent_subagents: Whole | None = None


_NOT_STORED_HERE = "The server stores no such objects. Leave it out."


class ResponseOptions(CommonOptions):
    """The options of ``POST /v1/responses``."""

    include: Annotated[list[str], Field(fail_fast=True)] | None = None
    text: TextOptions | None = None
    truncation: Literal["auto", "disabled"] | None = None
    reasoning: ReasoningOptions | None = None
    stream_options: StreamOptions | None = None
    max_tool_calls: Whole | None = None
    conversation: Annotated[Any, neutral(is_empty, _NOT_STORED_HERE)] = None
    prompt: Annotated[Any, neutral(is_empty, _NOT_STORED_HERE)] = None
    context_management: Annotated[list[Any], neutral(is_empty, "Send an empty array.")] | None = (
        None
    )
    image: ImageOptions | None = None
    access_programs: AccessPrograms | None = None
    background_options: BackgroundOptions | None = None
    multi_agent: MultiAgentOptions | None = None
    #: Of the request that counts tokens.
    personality: Annotated[str, neutral(nothing, "`instructions` say how to answer.")] | None = None

    def repeated(self) -> dict[str, Any]:
        """Return what the request sets of the parameters that its response repeats."""
        given = self.model_dump(include=set(DEFAULTS), exclude_none=True)
        if "reasoning" in given:
            given["reasoning"] = {"effort": None, "summary": None, **given["reasoning"]}
        if "text" in given:
            given["text"] = {**DEFAULTS["text"], **given["text"]}
        return {name: value for name, value in given.items() if value != DEFAULTS[name]}


#: What responses show for each of these parameters if the request does not set it.
DEFAULTS: dict[str, Any] = {
    "tools": [],
    "tool_choice": "none",
    "parallel_tool_calls": False,
    "max_tool_calls": None,
    "top_logprobs": 0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "text": {"format": {"type": "text"}},
    "truncation": "disabled",
    "reasoning": None,
    "service_tier": "default",
    "user": None,
    "safety_identifier": None,
    "prompt_cache_key": None,
    "prompt_cache_retention": None,
}
