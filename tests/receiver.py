"""A real HTTP server that receives webhooks, and replies as it is told."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from openai import OpenAI

from tests.joining import shut_down
from tests.servers import PATIENCE

#: Replies to one request with a handler's methods.
Reply = Callable[[BaseHTTPRequestHandler], None]


@dataclass(frozen=True)
class Webhook:
    """A request that was received."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    def unwrap(self, secret: str) -> Any:
        """Verify it with OpenAI's client; return the event."""
        client = OpenAI(api_key="unused", webhook_secret=secret)
        return client.webhooks.unwrap(self.body, self.headers)


def status(code: int, **headers: str) -> Reply:
    """Reply with a status, and with headers whose names have underscores here."""

    def reply(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return reply


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    #: Python's five are exceeded while its thread waits for a processor. Who connects then tries again after a second.
    request_queue_size = 128


class Receiver:
    """Receives webhooks at `url` until it is closed."""

    def __init__(self, host: str = "127.0.0.1", certificate: Path | None = None) -> None:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                receiver._add(Webhook(self.path, headers, body))
                receiver.reply(self)

            def log_message(self, *_: Any) -> None:
                pass

        #: How to reply; it may change at any time.
        self.reply: Reply = status(204)
        self._received: list[Webhook] = []
        self._news = threading.Condition()
        self._server = _Server((host, 0), Handler)
        scheme = "http"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
            scheme = "https"
        self.port: int = self._server.server_address[1]
        self.url = f"{scheme}://{host}:{self.port}/hook"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), daemon=True
        )
        self._thread.start()

    @property
    def received(self) -> list[Webhook]:
        with self._news:
            return list(self._received)

    def wait_for(self, count: int) -> list[Webhook]:
        """Wait until so many have come; return all."""
        with self._news:
            assert self._news.wait_for(lambda: len(self._received) >= count, PATIENCE), (
                f"{len(self._received)} of {count} webhooks have come"
            )
            return list(self._received)

    def close(self) -> None:
        shut_down(self._server, self._thread)

    def _add(self, webhook: Webhook) -> None:
        with self._news:
            self._received.append(webhook)
            self._news.notify_all()
