"""The shapes of responses: jobs as OpenAI's Responses API shows them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from jobs import pipeline
from jobs.enums import Status
from jobs.protocol.request import Context
from jobs.protocol.schemas.base import AlwaysTrue, JobId, Model, Page, Reply, Timestamp


class SummaryText(Reply):
    type: Literal["summary_text"]
    text: str


class ReasoningText(Reply):
    type: Literal["reasoning_text"]
    text: str


class OutputText(Reply):
    type: Literal["output_text"]
    text: str
    annotations: list[Any] = Field(max_length=0)
    logprobs: list[Any] = Field(max_length=0)


class OutputReasoning(Reply):
    """A draft or a critique."""

    type: Literal["reasoning"]
    id: str
    status: Literal["in_progress", "completed", "incomplete"]
    summary: list[SummaryText]
    content: list[ReasoningText]


class OutputMessage(Reply):
    """The answer."""

    type: Literal["message"]
    id: str
    status: Literal["in_progress", "completed", "incomplete"]
    role: Literal["assistant"]
    content: list[OutputText]


class InputTokens(Reply):
    cached_tokens: int
    cache_write_tokens: int


class InputTokenCount(Reply):
    """How long the longest prompt of a request is."""

    object: Literal["response.input_tokens"]
    input_tokens: int
    #: With a longer one, the texts of all stages would not fit the model's context.
    max_input_tokens: int


class OutputTokens(Reply):
    reasoning_tokens: int


class Usage(Reply):
    """Tokens over all finished stages."""

    input_tokens: int
    input_tokens_details: InputTokens
    output_tokens: int
    output_tokens_details: OutputTokens
    total_tokens: int


class JobError(Reply):
    code: str
    message: str


class Incomplete(Reply):
    reason: Literal["max_output_tokens"]


class ResponseObject(Reply):
    """A job as OpenAI's Response object."""

    id: JobId
    object: Literal["response"]
    created_at: Timestamp
    status: Status
    background: bool
    completed_at: Timestamp | None
    error: JobError | None
    incomplete_details: Incomplete | None
    instructions: str
    max_output_tokens: int
    metadata: dict[str, str]
    model: Model
    output: list[OutputReasoning | OutputMessage]
    previous_response_id: str | None
    store: AlwaysTrue
    temperature: float
    top_p: float
    tools: list[Any] = Field(max_length=0)
    tool_choice: Literal["auto", "none"]
    parallel_tool_calls: bool
    max_tool_calls: int | None
    top_logprobs: Literal[0]
    presence_penalty: float
    frequency_penalty: float
    text: dict[str, Any]
    truncation: Literal["auto", "disabled"]
    reasoning: dict[str, str | None] | None
    service_tier: Literal["auto", "default"]
    user: str | None
    safety_identifier: str | None
    prompt_cache_key: str | None
    prompt_cache_retention: str | None
    usage: Usage | None
    context: Context
    top_k: int
    seed: int
    stop: list[str] | None
    rounds: int = Field(ge=1, le=pipeline.MAX_ROUNDS)
    priority: int = Field(ge=0, le=pipeline.MAX_PRIORITY)
    run: int
    erased_at: Timestamp | None


class ResponseList(Page):
    """A page of responses."""

    data: list[ResponseObject]


class DeletedResponse(Reply):
    id: JobId
    object: Literal["response"]
    deleted: AlwaysTrue
