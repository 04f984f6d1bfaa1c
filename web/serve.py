"""The web process: waitress, which has read a request before a thread sees it.

One loop reads and writes all connections. A thread is taken by a request that is whole, and given back
when its reply is made: clients that stop half way, in sending or in reading, hold none.
"""

from __future__ import annotations

import errno
import logging
import signal
import socket
import time
from contextlib import suppress
from types import FrameType

from flask import Flask
from waitress import wasyncore
from waitress.channel import HTTPChannel
from waitress.server import TcpWSGIServer
from waitress.task import ErrorTask, ThreadedTaskDispatcher

from jobs.settings import Settings
from web import MAX_BODY, create_app
from web.errors import HTTPError, error_response
from web.limits import raise_open_files
from web.services import Services
from web.waiting import MAX_WAITING

log = logging.getLogger(__name__)

#: Requests served at once: those that wait for jobs, and some for the others.
THREADS = MAX_WAITING + 56
#: Seconds that replies in progress may take to finish after a signal.
GRACE = 5.0
#: Seconds that a client may take to send a request.
REQUEST_TIME = 60.0
#: Seconds that a connection may be open with nothing moving on it. (nginx keeps its own for 60.)
IDLE_TIME = 75.0
#: Seconds that a client may go on to send what was refused.
DRAIN_TIME = 5.0
#: Bytes of a request's head.
MAX_HEAD = 1 << 16
#: Bytes of a reply that wait for its reader in memory; what is more waits in a file, and a stream waits.
OUT_MEMORY, OUT_MOST = 1 << 18, 1 << 20
#: Bytes of a request that wait for the rest in memory; what is more waits in a file.
IN_MEMORY = 1 << 16
#: The most connections. The loop passes each of them at every turn.
MOST_CONNECTIONS = 10_000
#: The most connections taken in one turn of the loop.
ACCEPTS = 100
#: Files that are no clients': the database's, Redis', the program's own.
OTHER_FILES = 500
#: Seconds of the loop without news.
TURN = 1.0


class AddressError(Exception):
    """The web cannot listen where the settings say; the message says what to do."""


class _ErrorTask(ErrorTask):  # type: ignore[misc]  # waitress ships no types
    """Answers what is no request, in the shape of the part of the site that was asked."""

    def execute(self) -> None:
        error = self.request.error
        code = "request_too_large" if error.code == 413 else "bad_request"
        message = f"The request is malformed: {error.body}."
        if error.code == 413:
            message = "The request is larger than 1 MiB."
        elif error.code == 431:
            message = f"The request's headers are larger than {MAX_HEAD >> 10} KiB."
        elif error.code >= 500:
            message, code = f"{error.body}.", "server_error"
        self.channel.refused = True
        app: Flask = self.channel.server.flask
        with app.test_request_context(getattr(self.request, "path", "") or "/"):
            reply = error_response(HTTPError(error.code, message, code=code))
            reply = app.process_response(reply)
        body = reply.get_data()
        self.status = reply.status
        self.response_headers.extend(reply.headers.items())
        self.set_close_on_finish()
        self.content_length = len(body)
        self.write(body)


class _Channel(HTTPChannel):  # type: ignore[misc]  # waitress ships no types
    """A connection, which knows how long its request has been coming."""

    error_task_class = _ErrorTask
    #: When the request that is being received began.
    began = 0.0
    #: Whether the last reply refuses what the client may still be sending.
    refused = False
    #: Whether it is sent, and the rest of the request is read to be thrown away: were it left unread, the
    #: system would reset the connection, and the client might lose the reply.
    draining = False

    def readable(self) -> bool:
        return self.draining or bool(super().readable())

    def writable(self) -> bool:
        return not self.draining and bool(super().writable())

    def handle_close(self) -> None:
        if self.refused and not self.draining:
            self.draining = True
            self.began = time.time()
            with suppress(OSError):  # it is gone
                self.socket.shutdown(socket.SHUT_WR)
                return
        super().handle_close()

    def received(self, data: bytes) -> bool:
        if self.draining:
            return False
        before = self.request
        taken: bool = super().received(data)
        if self.request is not before:
            self.began = time.time()
        return taken

    def late(self, now: float) -> bool:
        """Whether the client should have sent its request, or read on, or asked again, by now."""
        if self.draining:
            return now - self.began > DRAIN_TIME
        if self.request is not None and not self.requests and now - self.began > REQUEST_TIME:
            return True
        still = now - self.last_activity > IDLE_TIME
        return still and (not self.requests or self.total_outbufs_len > 0)


class _Server(TcpWSGIServer):  # type: ignore[misc]  # waitress ships no types
    channel_class = _Channel

    def __init__(self, app: Flask, listener: socket.socket, most_connections: int) -> None:
        self.flask = app
        dispatcher = ThreadedTaskDispatcher()
        dispatcher.set_thread_count(THREADS)
        super().__init__(
            app,
            _sock=listener,
            sockinfo=(listener.family, listener.type, listener.proto, listener.getsockname()),
            bind_socket=False,
            dispatcher=dispatcher,
            sockets=[listener],
            connection_limit=most_connections,
            cleanup_interval=5,
            # Reads on while a request is served, and so sees that its client has gone.
            channel_request_lookahead=1,
            max_request_header_size=MAX_HEAD,
            max_request_body_size=MAX_BODY + 1,
            inbuf_overflow=IN_MEMORY,
            outbuf_overflow=OUT_MEMORY,
            outbuf_high_watermark=OUT_MOST,
            log_socket_errors=False,
            ident="",
        )

    def handle_accept(self) -> None:
        """Take all who wait, or many of them: each turn of the loop passes every connection."""
        before = -1
        for _ in range(ACCEPTS):
            now = len(self.active_channels)
            if now == before or now >= self.adj.connection_limit:
                return
            before = now
            super().handle_accept()

    def maintenance(self, now: float) -> None:
        """Close connections on which nothing goes on."""
        for channel in list(self.active_channels.values()):
            if channel.late(now):
                channel.handle_close()

    @property
    def busy(self) -> bool:
        """Whether a reply is being made or sent."""
        channels = list(self.active_channels.values())
        return any(channel.requests or channel.total_outbufs_len for channel in channels)

    def turn(self, seconds: float) -> None:
        """Read and write what can be, waiting at most so long for something."""
        wasyncore.loop(timeout=seconds, use_poll=True, map=self._map, count=1)

    def accept_no_more(self) -> None:
        wasyncore.dispatcher.close(self)


class _Signals:
    """Counts the signals that ask to stop."""

    def __init__(self, server: _Server) -> None:
        self._server = server
        self.asked = 0
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)

    def _ask(self, _number: int, _frame: FrameType | None) -> None:
        self.asked += 1
        self._server.pull_trigger()


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; a second one ends it at once.

    Raises:
        AddressError: the address is taken or not this machine's.
    """
    for name, level in (("waitress", logging.WARNING), ("waitress.queue", logging.ERROR)):
        logging.getLogger(name).setLevel(level)
    listener = _bind(settings)
    # A connection can have its request or its reply in a file besides.
    most = min(MOST_CONNECTIONS, max(1, raise_open_files() - OTHER_FILES) // 2)
    app = create_app(settings)
    found: Services = app.extensions["helixq"]
    server = _Server(app, listener, most)
    signals = _Signals(server)
    found.waiter.stopping = lambda: signals.asked > 0
    log.info("listening at %s", settings.url)
    while not signals.asked:
        server.turn(TURN)
    server.accept_no_more()
    give_up = time.monotonic() + GRACE
    while server.busy and signals.asked < 2 and time.monotonic() < give_up:
        server.turn(TURN / 10)


def check_address(settings: Settings) -> None:
    """Make sure that the web can listen.

    Raises:
        AddressError: it cannot.
    """
    _bind(settings).close()


def _bind(settings: Settings) -> socket.socket:
    """Return a socket that is bound to the settings' address, and does not listen yet."""
    try:
        found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)
        # Of a name's addresses the one of IPv4 first, as people mean it by localhost.
        family, kind, _, _, address = min(found, key=lambda one: one[0] is not socket.AF_INET)
        listener = socket.socket(family, kind)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        place = f"{settings.host}:{settings.port}"
        if error.errno == errno.EADDRINUSE:
            raise AddressError(
                f"{place} is taken by another program: stop it, or set HELIXQ_PORT"
            ) from error
        raise AddressError(
            f"cannot listen on {place} ({error.strerror}): check HELIXQ_HOST and HELIXQ_PORT"
        ) from error
    return listener
