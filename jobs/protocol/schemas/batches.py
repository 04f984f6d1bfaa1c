"""The shapes of batches."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from jobs.enums import BatchStatus
from jobs.protocol.schemas.base import Model, Page, Reply, Timestamp
from jobs.protocol.schemas.responses import OutputTokens


class LineError(Reply):
    code: str
    line: int | None
    message: str
    param: str | None


class BatchErrors(Reply):
    object: Literal["list"]
    data: list[LineError]


class RequestCounts(Reply):
    total: int
    completed: int
    failed: int


class CachedTokens(Reply):
    cached_tokens: int


class BatchUsage(Reply):
    input_tokens: int
    input_tokens_details: CachedTokens
    output_tokens: int
    output_tokens_details: OutputTokens
    total_tokens: int


class Batch(Reply):
    """Questions of a file, answered in the background."""

    id: str = Field(pattern=r"^batch_[0-9a-f]{32}$")
    object: Literal["batch"]
    endpoint: Literal["/v1/responses", "/v1/chat/completions"]
    model: Model
    errors: BatchErrors | None
    input_file_id: str
    completion_window: Literal["24h"]
    status: BatchStatus
    output_file_id: str | None
    error_file_id: str | None
    created_at: Timestamp
    in_progress_at: Timestamp | None
    expires_at: Timestamp | None
    finalizing_at: Timestamp | None
    completed_at: Timestamp | None
    failed_at: Timestamp | None
    expired_at: Timestamp | None
    cancelling_at: Timestamp | None
    cancelled_at: Timestamp | None
    request_counts: RequestCounts
    usage: BatchUsage
    metadata: dict[str, str]


class BatchList(Page):
    """A page of batches."""

    data: list[Batch]
