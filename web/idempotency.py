"""The header `Idempotency-Key`: a client's name for a request, which makes it safe to send it again."""

from __future__ import annotations

from flask import request

from jobs.protocol.errors import InvalidRequestError

MAX_KEY_LENGTH = 255


def idempotency_key() -> str | None:
    """Return the current request's key; None if it has none.

    Raises:
        InvalidRequestError: the key is empty or too long.
    """
    key = request.headers.get("Idempotency-Key")
    if key is not None and not 1 <= len(key) <= MAX_KEY_LENGTH:
        raise InvalidRequestError(
            f"`Idempotency-Key` must have 1 to {MAX_KEY_LENGTH} characters.",
            code="invalid_idempotency_key",
        )
    return key
