"""The HTTP server: waitress, with time limits and our own error responses (`web.server_requests`).

One loop reads and writes all connections. A request gets a thread when all of it has arrived, and the
thread is free again when the response is made: a client that sends or reads slowly, or stops, occupies
none.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from flask import Flask
from waitress import wasyncore
from waitress.channel import ClientDisconnected, HTTPChannel
from waitress.server import TcpWSGIServer

from web import MAX_BODY, upload_checks
from web.dispatcher import Dispatcher
from web.errors import HTTPError
from web.event_loop import EventLoop
from web.server_requests import (
    MAX_HEADERS,
    RefusalTask,
    RequestParser,
    RequestRefusedError,
    RequestTask,
    Uploads,
)
from web.waiting import MAX_WAITING

log = logging.getLogger(__name__)

#: Requests that are served at the same time: those that wait for jobs, and 56 others.
THREADS = MAX_WAITING + 56
#: Seconds that a connection may stay open while nothing is sent or received. (nginx uses 60.)
IDLE_TIMEOUT = 75.0
#: Seconds that a client may go on sending a request that was refused.
DRAIN_TIMEOUT = 5.0
#: Bytes of a request that are buffered in memory. The rest is buffered in a file.
REQUEST_BUFFER = 1 << 16
#: Bytes of a response that are buffered in memory. The rest is buffered in a file.
RESPONSE_BUFFER = 1 << 18
#: Bytes of an event stream that are buffered. Then the stream waits for its reader.
MAX_STREAM_BUFFER = 1 << 20
#: The maximum number of connections accepted in one turn of the loop: the others wait meanwhile.
MAX_ACCEPTS = 100


class _UploadCheck:
    """Asks on a thread whether an upload is refused. Nothing more of it is read meanwhile."""

    def __init__(self, channel: _Channel, request: RequestParser) -> None:
        self._channel = channel
        self._request = request
        self._reason: HTTPError | None = None
        self.done = False

    def service(self) -> None:
        server: Server = self._channel.server
        try:
            self._reason = upload_checks.refusal(
                server.flask, self._request.path, self._request.headers
            )
        except Exception:
            log.exception("an upload was not checked before it arrived")
        self.done = True
        server.checked.append(self)
        server.pull_trigger()

    def cancel(self) -> None:
        """Do nothing: the server stops."""

    def finish(self) -> None:
        """Reply to a request that is refused. The loop calls it."""
        channel, request = self._channel, self._request
        # Nobody else may keep a request: it is one of the uploads until it is forgotten.
        del self._channel, self._request
        channel.server.event_loop.ask(channel._fileno)  # It may be read again.
        if self._reason is not None:
            channel.refuse(request, self._reason)
        else:
            channel.go_on(request)


class _Channel(HTTPChannel):  # type: ignore[misc]  # waitress has no types
    """A connection with time limits."""

    task_class = RequestTask
    error_task_class = RefusalTask
    parser_class = RequestParser
    #: The request that is being received.
    request: RequestParser | None = None
    #: When the first bytes of the current request arrived, or when draining began.
    started_at = 0.0
    #: Whether the last response refused a request that the client may still be sending.
    refused = False
    #: Whether that response is sent and the rest of the request is read to be discarded. If it were not
    #: read, the system would reset the connection, and the client might lose the response.
    draining = False
    #: Whether the loop does not wait for more from the client, since its last turn.
    unread = False
    #: Whether the client sends no more. It may wait for its replies, or have gone.
    half_closed = False
    #: Whether something was sent to it since, so that the system resets the connection if it has gone.
    probed = False
    #: The request that a thread serves.
    task: RequestTask | None = None
    _parts: list[bytes] | None = None

    def readable(self) -> bool:
        # In this order: see `quiet`.
        self.unread = True
        if self.half_closed and not self.draining:
            if self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                self.will_close = True
            return False
        check = None if self.request is None else self.request.check
        waits = check is not None and not check.done
        readable = self.draining or (not waits and bool(super().readable()))
        self.unread = not readable
        return readable

    @property
    def quiet(self) -> bool:
        """Whether the loop has nothing to do for it that it does not already wait for."""
        return not (
            self.total_outbufs_len or self.will_close or self.close_when_flushed or self.unread
        )

    def add_channel(self, map: Any = None) -> None:  # noqa: A002 (waitress's name)
        super().add_channel(map)
        self.server.event_loop.ask(self._fileno)

    def del_channel(self, map: Any = None) -> None:  # noqa: A002 (waitress's name)
        self.server.event_loop.forget(self._fileno)
        # There may be room for another one.
        self.server.event_loop.ask(self.server._fileno)
        super().del_channel(map)

    def service(self) -> None:
        self.server.serving.channel = self
        try:
            super().service()
            with self.requests_lock:
                if self.half_closed and not self.requests:
                    self.close_when_flushed = True
            if self.half_closed and self.connected:
                self.server.pull_trigger()
        finally:
            self.server.serving.channel = self.task = None

    def check_client_disconnected(self) -> bool:
        """Return whether the client has gone. The thread that serves its request calls it while the reply waits."""
        if self.half_closed and not self.probed and self.task is not None:
            try:
                self.probed = self.task.probe()
            except ClientDisconnected:
                return True
            if not self.probed and not self.task.complete:
                return True
        return not self.connected

    @contextmanager
    def sent_together(self) -> Iterator[None]:
        """Send what is written meanwhile at once."""
        self._parts = []
        try:
            yield
        finally:
            parts, self._parts = self._parts, None
            if parts:
                self.write_soon(parts[0] if len(parts) == 1 else b"".join(parts))

    def write_soon(self, data: Any) -> int:
        if self._parts is not None and isinstance(data, bytes):
            self._parts.append(data)
            return len(data)
        return int(super().write_soon(data))

    def writable(self) -> bool:
        return not self.draining and bool(super().writable())

    def handle_close(self) -> None:
        if self.refused and not self.draining:
            self.draining = True
            self.started_at = time.time()
            with suppress(OSError):  # The client has gone.
                self.socket.shutdown(socket.SHUT_WR)
                return
        super().handle_close()

    def handle_read(self) -> None:
        try:
            data = self.socket.recv(self.adj.recv_bytes)
        except BlockingIOError:
            return
        except OSError:
            self.handle_close()
            return
        if data:
            self.last_activity = time.time()
            self.received(data)
            return
        with self.requests_lock:
            self.half_closed = True
            self.close_when_flushed = not self.requests
        if not self.requests and not self.total_outbufs_len:
            self.handle_close()

    def received(self, data: bytes) -> bool:
        if self.draining:
            return False
        before = self.request
        accepted: bool = super().received(data)
        request = self.request
        if request is not before:
            self.started_at = time.time()
        if request is not None and request.is_upload and request.check is None:
            request.check = _UploadCheck(self, request)
            self.server.add_task(request.check)
        return accepted

    def send_continue(self) -> None:
        """Ask for the body of a request, unless its headers are refused or it is an upload that is still checked."""
        request = self.request
        if request is None or request.completed:
            return
        if not request.is_upload or (request.check is not None and request.check.done):
            super().send_continue()

    def go_on(self, request: RequestParser) -> None:
        """Ask for the body of an upload, if its client waits for that. The loop calls it."""
        with self.requests_lock:
            # Behind other requests, it is asked for when they are done.
            if self.request is request and request.expect_continue and not self.requests:
                self.send_continue()

    def refuse(self, request: RequestParser, reason: HTTPError) -> None:
        """Reply with an error to the request that is being received, if it still is. The loop calls it."""
        with self.requests_lock:
            if self.request is not request or not self.connected:
                return
            self.server.adj.uploads.requests.discard(request)
            request.error = RequestRefusedError(reason)
            request.completed = True
            self.request = None
            self.requests.append(request)
            if len(self.requests) == 1:
                self.server.add_task(self)

    def check_time(self, now: float) -> None:
        """Refuse a request that takes too long to arrive, or close a connection on which nothing happens."""
        request, idle = self.request, now - self.last_activity > IDLE_TIMEOUT
        if self.draining:
            if now - self.started_at > DRAIN_TIMEOUT:
                self.handle_close()
        elif idle and self.total_outbufs_len:
            self.handle_close()
        elif request is not None and not self.requests:
            seconds = now - self.started_at
            if idle or seconds > request.timeout:
                self.refuse(request, request.late(seconds))
        elif idle and not self.requests:
            self.handle_close()


class Server(TcpWSGIServer):  # type: ignore[misc]  # waitress has no types
    """The server of an application. The caller runs its loop, turn by turn."""

    channel_class = _Channel

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
        self.checked: deque[_UploadCheck] = deque()
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
        channel: _Channel | None = getattr(self.serving, "channel", None)
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
