"""The header `Idempotency-Key`: a client's name for a request, which makes it safe to send it again."""

from __future__ import annotations

import hashlib
from typing import Any

from flask import request

from jobs.protocol import body
from jobs.protocol.errors import InvalidRequestError
from jobs.use_cases.requests import Keyed
from web.caller import get_caller

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


def keyed_request(data: dict[str, Any] | None = None) -> Keyed | None:
    """Return the current request as its key names it; None if it has no key.

    Args:
        data: the body, or what of it counts; None for an endpoint that reads none.

    Raises:
        InvalidRequestError: the key is empty or too long.
    """
    key = idempotency_key()
    if key is None:
        return None
    sent = hashlib.sha256(request.get_data()).hexdigest() if data is None else body.digest(data)
    return Keyed(get_caller().owner, key, body.digest({"path": request.path, "body": sent}))
