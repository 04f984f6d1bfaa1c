"""Server-sent events of a completion: bytes to JSON objects."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

#: The maximum number of bytes of one event.
MAX_EVENT = 1 << 20


class StreamError(Exception):
    """A stream is not what was expected."""


class EventStream:
    """The data of each event of a stream, until ``[DONE]`` or the end. It is iterated once.

    Lines end at line feeds alone. `str.splitlines` would also split at characters such as U+2028, which
    JSON has unescaped.
    """

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        """
        Args:
            chunks: of the reply's body.
        """
        self._chunks = chunks
        #: Whether ``[DONE]`` was read: what follows, if anything, is the end of the body.
        self.done = False

    async def __aiter__(self) -> AsyncIterator[dict[str, Any]]:
        """Yield the data of each event.

        Raises:
            StreamError: an event is too long, or no JSON object.
        """
        buffer = bytearray()
        data: list[bytes] = []
        async for chunk in self._chunks:
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
                        self.done = True
                        return
                    yield _parsed(event)
        if buffer.startswith(b"data:"):  # The last line has no end.
            data.append(bytes(buffer[5:]).strip())
        if data and data[0] != b"[DONE]":
            yield _parsed(b"\n".join(data))

    async def read_rest(self) -> None:
        """Read what follows ``[DONE]``: of a server that sends more than the end, only as much as an event has."""
        size = 0
        async for chunk in self._chunks:
            size += len(chunk)
            if size > MAX_EVENT:
                return


def _parsed(event: bytes) -> dict[str, Any]:
    try:
        value = json.loads(event)
    except (ValueError, RecursionError) as error:
        raise StreamError("an event of the stream is no JSON") from error
    if not isinstance(value, dict):
        raise StreamError("an event of the stream is no JSON object")
    return value
