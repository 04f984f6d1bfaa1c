"""The web process: the address it listens on, its signals, and its shutdown."""

from __future__ import annotations

import errno
import gc
import logging
import socket
import time

from jobs.errors import UserError
from jobs.program import exit_at_once
from jobs.settings import Settings
from jobs.stop_signals import STOP_SIGNALS, StopSignals
from web import create_app, tracing
from web.open_files import raise_limit
from web.server import Server
from web.services import Services

log = logging.getLogger(__name__)

#: Seconds that responses in progress may take to finish after a signal.
SHUTDOWN_TIMEOUT = 5.0
#: The maximum number of connections, if the limit of open files allows so many.
MAX_CONNECTIONS = 10_000
#: Open files that are not connections: those of the database, Redis and the program.
RESERVED_FILES = 500
#: The maximum number of seconds of one turn of the server's loop.
MAX_TURN = 1.0


class AddressError(UserError):
    """The web cannot listen on the address of the settings."""


def serve(settings: Settings) -> None:
    """Serve until a signal asks to stop. A second one ends it at once.

    Raises:
        AddressError: the address is in use or does not belong to this machine.
    """
    logging.getLogger("waitress").setLevel(logging.WARNING)
    listener = _bind(settings)
    # Besides its socket, a connection can have a file for its request or its response.
    max_connections = min(MAX_CONNECTIONS, max(1, raise_limit() - RESERVED_FILES) // 2)
    app = create_app(settings)
    services: Services = app.extensions["helixq"]
    server = Server(app, listener, max_connections)
    # The objects so far live on. A full collection that looked through them would hold up all requests for 0.1 s.
    gc.collect()
    gc.freeze()
    with StopSignals(*STOP_SIGNALS, notify=server.pull_trigger) as signals:
        services.waiter.stopping = lambda: signals.count > 0
        log.info("listening at %s", settings.url)
        while not signals.count:
            server.run_once(MAX_TURN)
        server.stop_accepting()
        deadline = time.monotonic() + SHUTDOWN_TIMEOUT
        while server.busy and signals.count < 2 and time.monotonic() < deadline:
            server.run_once(MAX_TURN / 10)
    tracing.close(app)
    if server.busy:
        exit_at_once()


def check_address(settings: Settings) -> None:
    """Check that the web can listen on the address of the settings.

    Raises:
        AddressError: it cannot.
    """
    _bind(settings).close()


def _bind(settings: Settings) -> socket.socket:
    """Return a socket that is bound to the address and does not listen yet."""
    try:
        addresses = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)
        # Prefer IPv4, as people expect of localhost.
        family, kind, _, _, address = min(addresses, key=lambda info: info[0] != socket.AF_INET)
        listener = socket.socket(family, kind)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        listen_address = f"{settings.host}:{settings.port}"
        if error.errno == errno.EADDRINUSE:
            raise AddressError(
                f"{listen_address} is in use by another program: stop it, or set HELIXQ_PORT"
            ) from error
        raise AddressError(
            f"cannot listen on {listen_address} ({error.strerror}): check HELIXQ_HOST and HELIXQ_PORT"
        ) from error
    return listener
