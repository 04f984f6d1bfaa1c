"""The HTTP server: waitress, with time limits and our own error responses.

One loop reads and writes all connections. A request gets a thread when all of it has arrived, and the
thread is free again when the response is made: a client that sends or reads slowly, or stops, occupies
none.
"""

from __future__ import annotations

import copy
import logging
import re
import socket
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from flask import Flask
from waitress import wasyncore
from waitress.adjustments import Adjustments
from waitress.channel import ClientDisconnected, HTTPChannel
from waitress.parser import HTTPRequestParser, ParsingError
from waitress.server import TcpWSGIServer
from waitress.task import ErrorTask, WSGITask
from waitress.utilities import Error

from jobs.protocol.errors import ProtocolError
from web import MAX_BODY, upload_checks
from web.dispatcher import Dispatcher
from web.errors import HTTPError, error_response, is_upload, status_of, too_large, translated
from web.event_loop import EventLoop
from web.multipart import MAX_UPLOAD
from web.waiting import MAX_WAITING

log = logging.getLogger(__name__)

#: Requests that are served at the same time: those that wait for jobs, and 56 others.
THREADS = MAX_WAITING + 56
#: Seconds that a client may take to send a request.
REQUEST_TIMEOUT = 60.0
#: An upload may take a second longer for every so many bytes.
MIN_UPLOAD_RATE = 1 << 14
#: Uploads at the same time. Each has a file of the system until all of it has arrived.
MAX_UPLOADS = 16
#: Seconds that a connection may stay open while nothing is sent or received. (nginx uses 60.)
IDLE_TIMEOUT = 75.0
#: Seconds that a client may go on sending a request that was refused.
DRAIN_TIMEOUT = 5.0
#: The maximum number of bytes of a request's headers.
MAX_HEADERS = 1 << 16
#: Bytes of a request that are buffered in memory. The rest is buffered in a file.
REQUEST_BUFFER = 1 << 16
#: Bytes of a response that are buffered in memory. The rest is buffered in a file.
RESPONSE_BUFFER = 1 << 18
#: Bytes of an event stream that are buffered. Then the stream waits for its reader.
MAX_STREAM_BUFFER = 1 << 20
#: The maximum number of connections accepted in one turn of the loop: the others wait meanwhile.
MAX_ACCEPTS = 100


class _Task(WSGITask):  # type: ignore[misc]  # waitress has no types
    """Makes the response to a request. Its headers and the beginning of its body are sent together."""

    wrote_header: bool

    def execute(self) -> None:
        """Make the response. What fails before its first piece is a reply, as what fails in the application is."""
        try:
            super().execute()
        except (ClientDisconnected, OSError):
            raise
        except Exception as error:
            if self.wrote_header:
                raise
            reason = translated(error)
            self.request.error = _RefusedError(reason)
            self.close_on_finish = True
            refusal = _ErrorTask(self.channel, self.request)
            refusal.service()
            self.wrote_header = True

    def write(self, data: bytes) -> None:
        with self.channel.sent_together():
            super().write(data)

    def build_response_header(self) -> bytes:
        header: bytes = super().build_response_header()
        if self.request.command == "HEAD":
            self.chunked_response = False  # No body, and so no last chunk either.
        return header


class _ErrorTask(ErrorTask):  # type: ignore[misc]  # waitress has no types
    """Responds to a malformed request, in the shape of the part of the site that was requested."""

    def execute(self) -> None:
        error = self.request.error
        code = "request_too_large" if error.code == 413 else "bad_request"
        message = f"The request is malformed: {error.body}."
        if error.code == 413:
            message = too_large(self.request.command, self.request.path)
        elif error.code == 431:
            message = f"The request headers are larger than {MAX_HEADERS >> 10} KiB."
        elif error.code == 501:
            message, code = "`Transfer-Encoding` must be `chunked`.", "unsupported_encoding"
        elif error.code >= 500:
            message, code = f"{error.body}.", "server_error"
        if error.code == 503:
            code = "too_many_uploads"
        refused: ProtocolError = HTTPError(error.code, message, code=code)
        if isinstance(error, _RefusedError):
            refused = error.reason
        self.channel.refused = True
        app: Flask = self.channel.server.flask
        # As it came: a path such as `//[` is no URL.
        with app.test_request_context(environ_overrides={"PATH_INFO": self._path}):
            response = error_response(refused)
            response = app.process_response(response)
        body = response.get_data()
        self.status = response.status
        self.response_headers.extend(response.headers.items())
        self.set_close_on_finish()
        self.content_length = len(body)
        self.write(body)

    @property
    def _path(self) -> str:
        """The path that was requested; as it was sent if the request could not be parsed so far."""
        path: str = getattr(self.request, "path", "")
        if not path:
            _, _, target = getattr(self.request, "first_line", b"").partition(b" ")
            path = re.split(r"[ ?]", target.decode("latin-1"))[0]
        return path or "/"


class _TooManyUploadsError(Error):  # type: ignore[misc]  # waitress has no types
    code = 503
    reason = "Service Unavailable"


class _RefusedError(Error):  # type: ignore[misc]  # waitress has no types
    """The application refuses the request."""

    def __init__(self, reason: ProtocolError) -> None:
        super().__init__(reason.message)
        self.code = status_of(reason)
        self.reason = reason


class _Parser(HTTPRequestParser):  # type: ignore[misc]  # waitress has no types
    """A request. An upload may be larger than others, and take longer."""

    is_upload = False
    #: Whether an upload is refused; None before that is asked.
    check: _UploadCheck | None = None
    adj: Adjustments

    def parse_header(self, header_plus: bytes) -> None:
        try:
            super().parse_header(header_plus)
        except (
            ValueError
        ) as error:  # Python's, of a host or a number. Waitress lets it end the connection.
            raise ParsingError("Its target or its Content-Length is invalid") from error
        if self.chunked and "CONTENT_LENGTH" in self.headers:
            # A proxy may believe the one and we the other, and take the rest for another request.
            raise ParsingError("It has both Content-Length and Transfer-Encoding")
        self.is_upload = is_upload(self.command, self.path)
        if self.is_upload:
            # The settings of one server, so a place for what its requests share.
            uploads: _Uploads = self.adj.uploads
            if len(uploads.requests) >= MAX_UPLOADS:
                self.error = _TooManyUploadsError(
                    "Too many files are uploaded at once. Retry later"
                )
                self.completed = True
            uploads.requests.add(self)
            self.adj = uploads.adj

    @property
    def timeout(self) -> float:
        """Seconds that a client may take to send it."""
        extra = self.body_bytes_received / MIN_UPLOAD_RATE if self.is_upload else 0
        return REQUEST_TIMEOUT + extra


class _Uploads:
    """The uploads of a server that have begun and are not replied to."""

    def __init__(self, adj: Adjustments) -> None:
        """
        Args:
            adj: waitress's settings for all other requests.
        """
        self.requests: weakref.WeakSet[_Parser] = weakref.WeakSet()
        self.adj = copy.copy(adj)
        self.adj.max_request_body_size = MAX_UPLOAD + 1


class _UploadCheck:
    """Asks on a thread whether an upload is refused. Nothing more of it is read meanwhile."""

    def __init__(self, channel: _Channel, request: _Parser) -> None:
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
        with channel.requests_lock:
            if self._reason is None or channel.request is not request or not channel.connected:
                return
            channel.server.adj.uploads.requests.discard(request)
            request.error = _RefusedError(self._reason)
            request.completed = True
            channel.request = None
            channel.requests.append(request)
            if len(channel.requests) == 1:
                channel.server.add_task(channel)


class _Channel(HTTPChannel):  # type: ignore[misc]  # waitress has no types
    """A connection with time limits."""

    task_class = _Task
    error_task_class = _ErrorTask
    parser_class = _Parser
    #: When the first bytes of the current request arrived, or when draining began.
    started_at = 0.0
    #: Whether the last response refused a request that the client may still be sending.
    refused = False
    #: Whether that response is sent and the rest of the request is read to be discarded. If it were not
    #: read, the system would reset the connection, and the client might lose the response.
    draining = False
    #: Whether the loop does not wait for more from the client, since its last turn.
    unread = False
    _parts: list[bytes] | None = None

    def readable(self) -> bool:
        # In this order: see `quiet`.
        self.unread = True
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
        finally:
            self.server.serving.channel = None

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

    def timed_out(self, now: float) -> bool:
        """Return whether the client took too long to send, to read, or to make another request."""
        if self.draining:
            return now - self.started_at > DRAIN_TIMEOUT
        receiving = self.request is not None and not self.requests
        if receiving and now - self.started_at > self.request.timeout:
            return True
        idle = now - self.last_activity > IDLE_TIMEOUT
        return idle and (not self.requests or self.total_outbufs_len > 0)


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
        self.adj.uploads = _Uploads(self.adj)
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
        """Close the connections whose time is up."""
        for channel in list(self.active_channels.values()):
            if channel.timed_out(now):
                channel.handle_close()

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
