"""Files as OpenAI's File objects, and the parameters of an upload."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from jobs.models import File, FilePurpose
from jobs.protocol.errors import InvalidRequestError, invalid_value
from jobs.times import timestamp

#: The seconds that a file may be kept: an hour to 30 days.
MIN_EXPIRY, MAX_EXPIRY = 3600, 2_592_000
_FIELDS = ("file", "purpose", "expires_after[anchor]", "expires_after[seconds]")


def file_object(file: File) -> dict[str, Any]:
    """Return the File object of a file."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.size,
        "created_at": timestamp(file.created_at),
        "expires_at": timestamp(file.expires_at),
        "filename": file.name,
        "purpose": file.purpose.value,
        "status": "processed",
        "status_details": None,
    }


def parse_fields(fields: Mapping[str, str]) -> int | None:
    """Check the fields of an upload's form, without the file.

    Returns:
        the seconds until the file expires; None if the request does not say.

    Raises:
        InvalidRequestError: one of them is wrong.
    """
    if unknown := next((name for name in fields if name not in _FIELDS), None):
        names = ", ".join(f"`{name}`" for name in _FIELDS)
        raise InvalidRequestError(
            f"Unknown parameter: `{unknown[:100]}`. The supported parameters are {names}.",
            code="unknown_parameter",
            param=unknown[:100],
        )
    check_purpose(fields.get("purpose"))
    anchor, seconds = fields.get("expires_after[anchor]"), fields.get("expires_after[seconds]")
    if anchor is None and seconds is None:
        return None
    number = int(seconds) if seconds and re.fullmatch(r"\d{1,9}", seconds) else None
    return check_expiry({"anchor": anchor, "seconds": number}, "expires_after")


def check_purpose(purpose: str | None) -> FilePurpose:
    """Check what a client wants a file for.

    Raises:
        InvalidRequestError: that is not offered.
    """
    if purpose is None:
        raise InvalidRequestError(
            "Missing required parameter: `purpose`.",
            code="missing_required_parameter",
            param="purpose",
        )
    if purpose != FilePurpose.BATCH:
        raise InvalidRequestError(
            f"The purpose {purpose[:100]!r} is not supported. Use `batch`: files are the inputs of "
            "batches.",
            code="unsupported_parameter",
            param="purpose",
        )
    return FilePurpose.BATCH


def check_expiry(policy: Any, param: str) -> int:
    """Check an expiration policy; return its seconds.

    Args:
        policy: ``{"anchor": "created_at", "seconds": …}``.
        param: its name.

    Raises:
        InvalidRequestError: it is wrong.
    """
    seconds = policy.get("seconds") if isinstance(policy, dict) else None
    if (
        not isinstance(policy, dict)
        or set(policy) != {"anchor", "seconds"}
        or policy["anchor"] != "created_at"
        or type(seconds) is not int
        or not MIN_EXPIRY <= seconds <= MAX_EXPIRY
    ):
        raise invalid_value(
            param,
            f"`{param}` must have the anchor `created_at`, and {MIN_EXPIRY} to {MAX_EXPIRY} "
            "`seconds` (1 hour to 30 days).",
        )
    return seconds
