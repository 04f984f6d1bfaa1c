"""The HTTP server: waitress, with time limits (`web.server_channel`) and our own error responses (`web.server_responses`).

One loop reads and writes all connections. A request gets a thread when all of it has arrived, and the
thread is free again when the response is made: a client that sends or reads slowly, or stops, occupies
none.
"""

from __future__ import annotations

import socket
import threading
from collections import deque

from flask import Flask
from waitress import wasyncore
from waitress.server import TcpWSGIServer

from web import MAX_BODY
from web.dispatcher import Dispatcher
from web.event_loop import EventLoop
from web.server_channel import Channel, UploadCheck
from web.server_requests import MAX_HEADERS, Uploads
from web.waiting import MAX_WAITING

#: Requests that are served at the same time: those that wait for jobs, and 56 others.
THREADS = MAX_WAITING + 56
#: Bytes of a request that are buffered in memory. The rest is buffered in a file.
REQUEST_BUFFER = 1 << 16
#: Bytes of a response that are buffered in memory. The rest is buffered in a file.
RESPONSE_BUFFER = 1 << 18
#: Bytes of an event stream that are buffered. Then the stream waits for its reader.
MAX_STREAM_BUFFER = 1 << 20
#: The maximum number of connections accepted in one turn of the loop: the others wait meanwhile.
MAX_ACCEPTS = 100


class Server(TcpWSGIServer):  # type: ignore[misc]  # waitress has no types
    """The server of an application. The caller runs its loop, turn by turn."""

    channel_class = Channel

    def __init__(self, app: Flask, listener: socket.socket, max_connections: int) -> None:
        """
        Args:
            app: the application.
            listener: a socket that is bound and does not listen yet.
            max_connections: the maximum number of open connections; more wait to be accepted.
        """
        self.flask = app
        #: The connection whose request the current thread serves.
        self.serving = threading.local()
        #: Uploads of which it is known whether they are refused.
        self.checked: deque[UploadCheck] = deque()
        super().__init__(
            app,
            _sock=listener,
            sockinfo=(listener.family, listener.type, listener.proto, listener.getsockname()),
            bind_socket=False,
            dispatcher=Dispatcher(THREADS),
            sockets=[listener],
            connection_limit=max_connections,
            cleanup_interval=5,
            # Continue to read while a request is served, to notice when its client disconnects.
            channel_request_lookahead=1,
            max_request_header_size=MAX_HEADERS,
            max_request_body_size=MAX_BODY + 1,
            inbuf_overflow=REQUEST_BUFFER,
            outbuf_overflow=RESPONSE_BUFFER,
            outbuf_high_watermark=MAX_STREAM_BUFFER,
            log_socket_errors=False,
            # The application says what it takes from a proxy.
            clear_untrusted_proxy_headers=False,
            ident="",
        )
        self.adj.uploads = Uploads(self.adj)
        self.event_loop = EventLoop(self._map, super().pull_trigger)

    def pull_trigger(self) -> None:
        """Wake the loop, unless it would have nothing to do for the connection that the caller serves."""
        channel: Channel | None = getattr(self.serving, "channel", None)
        if channel is None:
            super().pull_trigger()
        elif not channel.quiet:
            self.event_loop.ask_now(channel._fileno)

    def handle_accept(self) -> None:
        """Accept all connections that wait, up to a maximum."""
        before = -1
        for _ in range(MAX_ACCEPTS):
            now = len(self.active_channels)
            if now == before or now >= self.adj.connection_limit:
                return
            before = now
            super().handle_accept()

    def maintenance(self, now: float) -> None:
        """Refuse requests and close connections whose time is up."""
        for channel in list(self.active_channels.values()):
            channel.check_time(now)

    @property
    def busy(self) -> bool:
        """Whether a response is being made or sent."""
        channels = list(self.active_channels.values())
        return any(channel.requests or channel.total_outbufs_len for channel in channels)

    def run_once(self, timeout: float) -> None:
        """Run one turn of the loop: wait until a connection is ready, then read and write.

        Args:
            timeout: the maximum number of seconds to wait.
        """
        self.event_loop.run_once(timeout)
        while self.checked:
            self.checked.popleft().finish()

    def stop_accepting(self) -> None:
        """Close the listening socket."""
        self.event_loop.forget(self._fileno)
        wasyncore.dispatcher.close(self)
