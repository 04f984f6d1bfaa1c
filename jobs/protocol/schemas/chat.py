"""The shapes of chat completions."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from jobs.protocol.request import Context
from jobs.protocol.schemas.base import (
    AlwaysTrue,
    Model,
    NoList,
    NoObject,
    NoText,
    Page,
    Reply,
    Timestamp,
)
from jobs.protocol.schemas.responses import InputTokens, OutputTokens

COMPLETION_ID = r"^chatcmpl-[0-9a-f]{32}$"


class ChatAnswer(Reply):
    role: Literal["assistant"]
    content: str
    reasoning_content: str
    refusal: NoText
    annotations: list[Any] = Field(max_length=0)


class ChatChoice(Reply):
    index: Literal[0]
    message: ChatAnswer
    logprobs: NoObject
    finish_reason: Literal["stop", "length"]


class ChatUsage(Reply):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: InputTokens
    completion_tokens_details: OutputTokens


class StoredChatMessage(Reply):
    """A message that was asked."""

    id: str
    role: Literal["user", "assistant", "system", "developer"]
    content: str
    content_parts: NoList
    refusal: NoText


class ChatMessageList(Page):
    """A page of messages that were asked."""

    data: list[StoredChatMessage]


class DeletedChatCompletion(Reply):
    id: str = Field(pattern=COMPLETION_ID)
    object: Literal["chat.completion.deleted"]
    deleted: AlwaysTrue


class ChatCompletion(Reply):
    """A job as OpenAI's chat completion."""

    id: str = Field(pattern=COMPLETION_ID)
    object: Literal["chat.completion"]
    created: Timestamp
    model: Model
    service_tier: Literal["default"]
    choices: list[ChatChoice] = Field(min_length=1, max_length=1)
    usage: ChatUsage
    metadata: dict[str, str]
    context: Context
