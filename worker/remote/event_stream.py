"""Server-sent events of a completion: bytes to JSON objects."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

#: The maximum number of bytes of one event.
MAX_EVENT = 1 << 20


class StreamError(Exception):
    """A stream is not what was expected."""


async def events(chunks: AsyncIterator[bytes]) -> AsyncIterator[dict[str, Any]]:
    """Yield the data of each event, until ``[DONE]`` or the end.

    Lines end at line feeds alone. `str.splitlines` would also split at characters such as U+2028, which
    JSON has unescaped.

    Args:
        chunks: of the reply's body.

    Raises:
        StreamError: an event is too long, or no JSON object.
    """
    buffer = bytearray()
    data: list[bytes] = []
    async for chunk in chunks:
        buffer += chunk
        *lines, rest = buffer.split(b"\n")
        buffer = bytearray(rest)
        if len(buffer) > MAX_EVENT:
            raise StreamError("an event of the stream is too long")
        for line in lines:
            line = line.removesuffix(b"\r")
            if line.startswith(b"data:"):
                data.append(bytes(line[5:].removeprefix(b" ")))
            elif not line and data:
                event, data = b"\n".join(data), []
                if event == b"[DONE]":
                    return
                yield _parsed(event)
    if buffer.startswith(b"data:"):  # The last line has no end.
        data.append(bytes(buffer[5:]).strip())
    if data and data[0] != b"[DONE]":
        yield _parsed(b"\n".join(data))


def _parsed(event: bytes) -> dict[str, Any]:
    try:
        value = json.loads(event)
    except (ValueError, RecursionError) as error:
        raise StreamError("an event of the stream is no JSON") from error
    if not isinstance(value, dict):
        raise StreamError("an event of the stream is no JSON object")
    return value
