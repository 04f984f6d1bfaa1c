"""The parameters of a chat completion, as OpenAI's older API has them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from jobs.protocol.base import RequestObject
from jobs.protocol.errors import InvalidRequestError
from jobs.protocol.items import NOT_EMPTY, AnyMessage, Content, text_of
from jobs.protocol.options import (
    TEXT_ONLY,
    CommonOptions,
    Label,
    Tools,
    Verbosity,
    is_empty,
    is_text_format,
    neutral,
    nothing,
    one_of,
)
from jobs.protocol.request import CommonParameters, Context, CreateResponse, supported

_NO_TOOLS = "The model calls no tools."
#: The names of a response's parameters in a chat completion.
_NAMES = {"input": "messages", "max_output_tokens": "max_completion_tokens"}


class ChatMessage(AnyMessage):
    """One message of ``messages``."""

    role: Annotated[
        str,
        neutral(lambda role: role not in ("tool", "function"), _NO_TOOLS),
        neutral(
            one_of("user", "assistant", "system", "developer"),
            "Use `user`, `assistant`, `system` or `developer`.",
        ),
    ]
    content: Content = ""
    # lm-evaluation-harness sends it with each message.
    type: Annotated[str, neutral(one_of("text", "message"), TEXT_ONLY)] | None = None
    # Messages of an earlier completion have these. They are accepted and ignored.
    name: str | None = None
    refusal: str | None = None
    annotations: list[Any] = Field(default=[])
    reasoning: Any = None
    reasoning_content: Any = None
    tool_calls: Tools | None = None
    function_call: Annotated[Any, neutral(is_empty, _NO_TOOLS)] = None
    audio: Annotated[Any, neutral(is_empty, TEXT_ONLY)] = None


class ChatStreamOptions(RequestObject):
    """The parameter ``stream_options`` of a chat completion."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    #: Of vLLM, for the usage so far in each chunk. Benchmarks send it, and do with the usage at the end.
    continuous_usage_stats: bool | None = None


class ChatOptions(CommonOptions):
    """Parameters that are not offered, with the values that ask for nothing."""

    n: Annotated[int, neutral(one_of(1), "A question has one answer. Use 1.")] | None = None
    logit_bias: Annotated[dict[str, Any], neutral(is_empty, "Send an empty object.")] | None = None
    logprobs: (
        Annotated[bool, neutral(is_empty, "Answers come without probabilities of tokens.")] | None
    ) = None
    response_format: Annotated[dict[str, Any], neutral(is_text_format, TEXT_ONLY)] | None = None
    functions: Tools | None = None
    function_call: Annotated[Any, neutral(one_of("auto", "none"), _NO_TOOLS)] = None
    reasoning_effort: Label | None = None
    verbosity: Verbosity | None = None
    modalities: Annotated[list[Any], neutral(one_of([], ["text"]), TEXT_ONLY)] | None = None
    audio: Annotated[Any, neutral(is_empty, TEXT_ONLY)] = None
    prediction: Annotated[Any, neutral(is_empty, "Leave it out.")] = None
    web_search_options: Annotated[Any, neutral(nothing, _NO_TOOLS)] = None
    stream_options: ChatStreamOptions | None = None


class CreateChatCompletion(CommonParameters, ChatOptions):
    """The parameters of ``POST /v1/chat/completions``."""

    messages: Annotated[list[ChatMessage], Field(fail_fast=True, json_schema_extra=NOT_EMPTY)]
    #: The maximum number of new tokens of each stage; ``max_tokens`` is its older name.
    max_completion_tokens: int | None = Field(default=None, ge=1, le=1 << 20)
    max_tokens: int | None = Field(default=None, ge=1, le=1 << 20)

    @property
    def includes_usage(self) -> bool:
        """Whether a stream should end with the usage."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def to_response(self, default_context: Context) -> CreateResponse:
        """Return the request for a response that asks the same.

        Args:
            default_context: if the request sets none.
        """
        same = {*CommonParameters.model_fields, "user", "safety_identifier", "prompt_cache_key"}
        items = [
            {
                "role": message.role,
                "content": message.content
                if isinstance(message.content, str)
                else text_of(message.content),
            }
            for message in self.messages
        ]
        return CreateResponse.model_validate(
            {
                **self.model_dump(include=same, exclude_none=True),
                "input": items,
                "context": self.context or default_context,
                "max_output_tokens": self.max_completion_tokens or self.max_tokens,
            }
        )


CHAT_SUPPORTED = supported(CreateChatCompletion, ChatOptions)


def in_chat_terms(error: InvalidRequestError) -> InvalidRequestError:
    """Return an error about a response's parameter as one about that of a chat completion."""
    message = error.message
    for name, chat_name in _NAMES.items():
        message = message.replace(f"`{name}`", f"`{chat_name}`")
    return InvalidRequestError(
        message, code=error.code, param=_NAMES.get(error.param or "", error.param)
    )
