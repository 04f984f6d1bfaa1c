"""A simulated server for `HELIXQ_ENGINE=openai`: its texts take as long as a GPU's, and mean nothing.

It measures queue, Redis and database for many GPUs on a machine without one: each worker has its slots, and each
text takes the same time, whatever else is generated.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager

#: Tokens of the context that it claims to have.
CONTEXT = 32_768
MODEL = "simulated"
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\n"


class SimulatedServer:
    """Serves as many completions at once as are asked for."""

    def __init__(self, seconds: float, tokens: int, pieces: int) -> None:
        """
        Args:
            seconds: that each text takes.
            tokens: of each text.
            pieces: in which it is streamed, at even intervals.
        """
        self._seconds = seconds
        self._tokens = tokens
        self._pieces = pieces
        #: Texts that are being generated, and the most there were.
        self.running = self.most_running = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Reply to the requests of one connection."""
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                method, path, _ = head.split(b" ", 2)
                length = next(
                    (
                        int(line.split(b":")[1])
                        for line in head.split(b"\r\n")
                        if line.lower().startswith(b"content-length:")
                    ),
                    0,
                )
                body = json.loads(await reader.readexactly(length)) if length else {}
                if method == b"POST" and path == b"/v1/completions":
                    await self._complete(writer, body)
                elif path == b"/v1/models":
                    self._send(writer, {"object": "list", "data": [_model()]})
                else:
                    writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # The client has closed it.
        finally:
            writer.close()

    async def _complete(self, writer: asyncio.StreamWriter, body: dict[str, int]) -> None:
        tokens = min(self._tokens, body["max_tokens"])
        size = -(-tokens // self._pieces)
        starts = range(0, tokens, size)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            writer.write(
                _HEAD % b"text/event-stream" + b"Transfer-Encoding: chunked\r\n\r\n",
            )
            for start in starts:
                # The warm-up of a worker, which asks for one token, does not wait.
                if tokens > 1:
                    await asyncio.sleep(self._seconds / len(starts))
                end = min(start + size, tokens)
                text = "".join(f" word{number}" for number in range(start, end))
                choice = {"text": text, "finish_reason": "length" if end == tokens else None}
                self._event(writer, {"choices": [choice]})
            usage = {"prompt_tokens": 64, "completion_tokens": tokens}
            self._event(writer, {"choices": [], "usage": usage})
            self._chunk(writer, b"data: [DONE]\n\n")
            writer.write(b"0\r\n\r\n")
        finally:
            self.running -= 1

    def _event(self, writer: asyncio.StreamWriter, event: object) -> None:
        self._chunk(writer, b"data: %s\n\n" % json.dumps(event).encode())

    def _chunk(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        writer.write(b"%x\r\n%s\r\n" % (len(data), data))

    def _send(self, writer: asyncio.StreamWriter, value: object) -> None:
        data = json.dumps(value).encode()
        head = _HEAD % b"application/json"
        writer.write(head + b"Content-Length: %d\r\n\r\n%s" % (len(data), data))


def _model() -> dict[str, object]:
    return {"id": MODEL, "object": "model", "owned_by": MODEL, "max_model_len": CONTEXT}


@contextmanager
def running(server: SimulatedServer) -> Iterator[int]:
    """Run a server on a thread of its own; yield its port on loopback."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="simulated server", daemon=True)
    thread.start()

    async def listen() -> asyncio.Server:
        return await asyncio.start_server(server.serve, "127.0.0.1", 0)

    async def stop(listening: asyncio.Server) -> None:
        listening.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    listening = asyncio.run_coroutine_threadsafe(listen(), loop).result()
    try:
        yield int(listening.sockets[0].getsockname()[1])
    finally:
        asyncio.run_coroutine_threadsafe(stop(listening), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
