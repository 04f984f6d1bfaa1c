"""A connection of the HTTP server: waitress's channel, with time limits, and uploads that are refused before they arrive."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from waitress.channel import ClientDisconnected, HTTPChannel

from web import upload_checks
from web.errors import HTTPError
from web.server_requests import RequestParser, RequestRefusedError
from web.server_responses import RefusalTask, RequestTask

log = logging.getLogger(__name__)

#: Seconds that a connection may stay open while nothing is sent or received. (nginx uses 60.)
IDLE_TIMEOUT = 75.0
#: Seconds that a client may go on sending a request that was refused.
DRAIN_TIMEOUT = 5.0


class UploadCheck:
    """Asks on a thread whether an upload is refused. Nothing more of it is read meanwhile."""

    def __init__(self, channel: Channel, request: RequestParser) -> None:
        self._channel = channel
        self._request = request
        self._reason: HTTPError | None = None

    def service(self) -> None:
        server = self._channel.server
        try:
            self._reason = upload_checks.refusal(
                server.flask, self._request.path, self._request.headers
            )
        except Exception:
            log.exception("an upload was not checked before it arrived")
        self._request.check_done = True
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


class Channel(HTTPChannel):  # type: ignore[misc]  # waitress has no types
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
        request = self.request
        waits = request is not None and request.check_began and not request.check_done
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
        if request is not None and request.is_upload and not request.check_began:
            request.check_began = True
            self.server.add_task(UploadCheck(self, request))
        return accepted

    def send_continue(self) -> None:
        """Ask for the body of a request, unless its headers are refused or it is an upload that is still checked."""
        request = self.request
        if request is None or request.completed:
            return
        if request.check_done or not request.is_upload:
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
