"""OpenAI's parameters that HelixQ does not offer, and the values of them that ask for nothing.

Clients send many of them without being asked. A value that would not change the answer is accepted, and
responses repeat it. Any other is refused by name: a client that asked for a tool must not get a text
that looks as if there had been none to call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

#: The type of errors about values that ask for what is not offered.
UNSUPPORTED = "unsupported"


def unsupported(reason: str) -> PydanticCustomError:
    """Return the error for a value that asks for what is not offered.

    Args:
        reason: a sentence that says what is not offered, or what to do instead.
    """
    return PydanticCustomError(UNSUPPORTED, "{reason}", {"reason": reason})


def neutral(accepts: Callable[[Any], bool], reason: str) -> AfterValidator:
    """Return a validator that refuses all values but those that ask for nothing."""

    def validate(value: Any) -> Any:
        if not accepts(value):
            raise unsupported(reason)
        return value

    return AfterValidator(validate)


def is_empty(value: Any) -> bool:
    """Return whether a value is null, false, 0 or has nothing in it."""
    return not value


def is_text_format(value: Any) -> bool:
    """Return whether a format of answers is plain text."""
    return isinstance(value, dict) and value.get("type", "text") == "text"


_NO_TOOLS = "The model calls no tools. Leave the parameter out."
TEXT_ONLY = "Answers are plain text."

Tools = Annotated[list[Any], neutral(is_empty, "The model calls no tools. Send an empty array.")]
ToolChoice = Annotated[Any, neutral(lambda value: value in ("auto", "none"), _NO_TOOLS)]
ServiceTier = Annotated[
    str, neutral(lambda value: value in ("auto", "default"), "Use `auto` or `default`.")
]
TopLogprobs = Annotated[
    int, neutral(is_empty, "Answers come without probabilities of tokens. Use 0.")
]
Verbosity = Annotated[
    str, neutral(lambda value: value == "medium", "State the length in the question.")
]
Moderation = Annotated[Any, neutral(is_empty, "Texts are not moderated. Leave it out.")]


Penalty = Annotated[float, neutral(is_empty, "Tokens are not penalized. Use 0.")]
#: A client's name for a user or a cache.
Label = Annotated[str, Field(max_length=512)]


class CommonOptions(BaseModel):
    """Those that responses and chat completions share."""

    model_config = ConfigDict(strict=True, extra="forbid")

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
    prompt_cache_options: dict[str, Any] | None = None
    moderation: Moderation = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None


class TextOptions(BaseModel):
    """The parameter ``text`` of a response."""

    model_config = ConfigDict(strict=True, extra="forbid")

    format: Annotated[dict[str, Any], neutral(is_text_format, TEXT_ONLY)] | None = None
    verbosity: Verbosity | None = None


class ReasoningOptions(BaseModel):
    """The parameter ``reasoning`` of a response. Drafts and critiques are always there, and always whole."""

    model_config = ConfigDict(strict=True, extra="forbid")

    effort: Label | None = None
    summary: Label | None = None
    generate_summary: Label | None = None
    context: Label | None = None
    mode: Label | None = None


class StreamOptions(BaseModel):
    """The parameter ``stream_options`` of a response."""

    model_config = ConfigDict(strict=True, extra="forbid")

    include_obfuscation: bool | None = None


_NOT_STORED_HERE = "The server stores no such objects. Leave it out."


class ResponseOptions(CommonOptions):
    """Those of ``POST /v1/responses``."""

    include: list[str] | None = None
    text: TextOptions | None = None
    truncation: Literal["auto", "disabled"] | None = None
    reasoning: ReasoningOptions | None = None
    stream_options: StreamOptions | None = None
    max_tool_calls: int | None = None
    conversation: Annotated[Any, neutral(is_empty, _NOT_STORED_HERE)] = None
    prompt: Annotated[Any, neutral(is_empty, _NOT_STORED_HERE)] = None
    context_management: Annotated[list[Any], neutral(is_empty, "Send an empty array.")] | None = (
        None
    )
    image: Annotated[Any, neutral(is_empty, TEXT_ONLY)] = None
    access_programs: Annotated[Any, neutral(is_empty, "Leave it out.")] = None
    background_options: Annotated[Any, neutral(is_empty, "Leave it out.")] = None

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
