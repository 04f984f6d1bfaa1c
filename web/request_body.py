"""The body of a request: its type, its compression and its size."""

from __future__ import annotations

import zlib
from typing import Any

from flask import request
from werkzeug.exceptions import RequestEntityTooLarge

from jobs.protocol import body
from jobs.protocol.errors import InvalidRequestError
from web.errors import HTTPError

#: zlib's window size and the number that makes it expect the header of gzip.
_GZIP = zlib.MAX_WBITS | 16


def read_json() -> dict[str, Any]:
    """Return the JSON object that the current request's body holds.

    Raises:
        HTTPError: it is not JSON, or compressed in another way than gzip.
        InvalidRequestError: it is not a JSON object.
        RequestEntityTooLarge: it is larger than the application's limit, compressed or not.
    """
    data = request.get_data()
    # This also protects against forms of other sites: they cannot send JSON.
    if request.mimetype != "application/json":
        raise HTTPError(
            415,
            "The body must be JSON, with the header `Content-Type: application/json`.",
            code="unsupported_type",
            headers={"Accept": "application/json"},
        )
    encoding = request.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding in ("gzip", "x-gzip"):
        data = _decompress(data, request.max_content_length or len(data))
    elif encoding != "identity":
        raise HTTPError(
            415,
            f"The body is compressed with {encoding!r}. Use `gzip`, or send it as it is.",
            code="unsupported_encoding",
            headers={"Accept-Encoding": "gzip"},
        )
    return body.parse(data)


def check_no_parameters() -> None:
    """Check that the current request's body sets no parameter, for an endpoint that has none.

    Raises:
        HTTPError, InvalidRequestError, RequestEntityTooLarge: it is neither empty nor a JSON object, or sets one.
    """
    if not request.get_data():
        return
    for name, value in read_json().items():
        if value is not None:
            raise InvalidRequestError(
                f"Unknown parameter: `{name[:100]}`. This request has no parameters.",
                code="unknown_parameter",
                param=name[:100],
            )


def _decompress(data: bytes, maximum: int) -> bytes:
    """Decompress a body, but no more of it than the maximum: a few bytes can stand for gigabytes."""
    decompressor = zlib.decompressobj(_GZIP)
    try:
        text = decompressor.decompress(data, maximum + 1)
    except zlib.error:
        text = b""
    if len(text) > maximum:
        raise RequestEntityTooLarge
    if not decompressor.eof or decompressor.unused_data:
        raise InvalidRequestError("The body is not valid gzip.", code="invalid_encoding")
    return text
