"""The web process: its server, its signals, and its shutdown."""

from __future__ import annotations

import gc
import logging
import time

from jobs import web_address
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


def serve(settings: Settings) -> None:
    """Serve until a signal asks to stop. A second one ends it at once.

    Raises:
        jobs.web_address.AddressError: the address is in use or does not belong to this machine.
    """
    logging.getLogger("waitress").setLevel(logging.WARNING)
    listener = web_address.bind(settings)
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
