"""Batches as OpenAI's Batch objects, and the parameters of a new one."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from jobs import pipeline
from jobs.models import Batch, BatchStatus
from jobs.protocol.base import RequestObject
from jobs.protocol.batch_lines import ENDPOINTS
from jobs.protocol.errors import InvalidRequestError
from jobs.protocol.files import check_expiry
from jobs.protocol.options import neutral, one_of
from jobs.protocol.request import Context, Metadata
from jobs.protocol.validation import check_metadata, parse
from jobs.times import timestamp
from jobs.use_cases.batches import NewBatch
from jobs.use_cases.requests import Keyed

_WINDOW = "24h"
#: What a batch does not have when it is accepted.
_UNSET_AT_FIRST = (
    "errors",
    "output_file_id",
    "error_file_id",
    "in_progress_at",
    "finalizing_at",
    "completed_at",
    "failed_at",
    "expired_at",
    "cancelling_at",
    "cancelled_at",
)


class CreateBatch(RequestObject):
    """The parameters of ``POST /v1/batches``."""

    input_file_id: Annotated[str, Field(max_length=100)]
    endpoint: Annotated[
        str,
        neutral(one_of(*ENDPOINTS), f"Use `{ENDPOINTS[0]}` or `{ENDPOINTS[1]}`."),
    ]
    completion_window: Annotated[str, neutral(one_of(_WINDOW), f"Use `{_WINDOW}`.")]
    metadata: Metadata | None = None
    output_expires_after: dict[str, Any] | None = None


def parse_batch(
    data: dict[str, Any],
    *,
    chat_context: Context,
    keyed: Keyed | None,
) -> NewBatch:
    """Return the batch that a request asks for.

    Args:
        data: the request's body.
        chat_context: what of a chat's messages is asked where a line does not say so.
        keyed: the request, if it has an idempotency key.

    Raises:
        InvalidRequestError: a parameter is wrong, or asks for what is not offered.
    """
    request = parse(CreateBatch, data, tuple(CreateBatch.model_fields))
    check_metadata(request.metadata)
    expires_after = None
    if request.output_expires_after is not None:
        expires_after = check_expiry(request.output_expires_after, "output_expires_after")
    return NewBatch(
        input_file_id=request.input_file_id,
        endpoint=request.endpoint,
        chat_context=chat_context,
        metadata=request.metadata or {},
        output_expires_after=expires_after,
        keyed=keyed,
    )


def no_input(file_id: str) -> InvalidRequestError:
    """Return the error for an input file that does not exist."""
    return InvalidRequestError(
        f"There is no file {file_id!r} with the purpose `batch`.",
        code="file_not_found",
        param="input_file_id",
    )


def accepted_batch_object(batch: Batch) -> dict[str, Any]:
    """Return the Batch object of a batch as it was accepted: before any of its lines was read."""
    return {
        **batch_object(batch),
        "status": BatchStatus.VALIDATING.value,
        **dict.fromkeys(_UNSET_AT_FIRST),
        "request_counts": _counts(0, 0, 0),
        "usage": _usage(0, 0, 0),
    }


def batch_object(batch: Batch) -> dict[str, Any]:
    """Return the Batch object of a batch."""
    ended = batch.ended_at is not None

    def ended_as(status: BatchStatus) -> int | None:
        return timestamp(batch.ended_at) if batch.status is status else None

    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "model": pipeline.MODEL,
        "errors": {"object": "list", "data": batch.errors} if ended and batch.errors else None,
        "input_file_id": batch.input_file_id,
        "completion_window": _WINDOW,
        "status": batch.status.value,
        "output_file_id": batch.output_file_id if ended else None,
        "error_file_id": batch.error_file_id if ended else None,
        "created_at": timestamp(batch.created_at),
        "in_progress_at": timestamp(batch.in_progress_at),
        "expires_at": timestamp(batch.expires_at),
        "finalizing_at": timestamp(batch.finalizing_at),
        "completed_at": ended_as(BatchStatus.COMPLETED),
        "failed_at": ended_as(BatchStatus.FAILED),
        "expired_at": ended_as(BatchStatus.EXPIRED),
        "cancelling_at": timestamp(batch.cancelling_at),
        "cancelled_at": ended_as(BatchStatus.CANCELLED),
        "request_counts": _counts(batch.total, batch.completed, batch.failed),
        "usage": _usage(batch.input_tokens, batch.output_tokens, batch.reasoning_tokens),
        "metadata": batch.metadata_,
    }


def _counts(total: int, completed: int, failed: int) -> dict[str, int]:
    return {"total": total, "completed": completed, "failed": failed}


def _usage(input_tokens: int, output_tokens: int, reasoning_tokens: int) -> dict[str, Any]:
    return {
        "input_tokens": input_tokens,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": output_tokens,
        "output_tokens_details": {"reasoning_tokens": reasoning_tokens},
        "total_tokens": input_tokens + output_tokens,
    }
