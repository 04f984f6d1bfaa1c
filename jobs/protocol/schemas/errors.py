"""The shapes of errors."""

from __future__ import annotations

from typing import Literal

from jobs.protocol.schemas.base import Reply


class ApiError(Reply):
    """What was wrong, and what would be right."""

    message: str
    type: Literal["invalid_request_error", "rate_limit_error", "server_error"]
    code: str
    param: str | None


class ErrorReply(Reply):
    """An error of `/v1`."""

    error: ApiError


class Problem(Reply):
    """An error of `/api` (RFC 9457)."""

    #: The title is the status's own: `code` tells problems of one status apart.
    type: Literal["about:blank"]
    title: str
    status: int
    detail: str
    code: str
    param: str | None
