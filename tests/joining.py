"""Waiting for the threads of tests, with a limit."""

from __future__ import annotations

import sys
import threading
import traceback
from socketserver import BaseServer

from tests.servers import PATIENCE


def join(thread: threading.Thread, limit: float = PATIENCE) -> None:
    """Wait for the end of a thread.

    Args:
        thread: that has been told to end.
        limit: maximum seconds.

    Raises:
        AssertionError: it still runs; the message says where.
    """
    thread.join(limit)
    if thread.is_alive():
        frame = sys._current_frames().get(thread.ident or 0)
        where = "".join(traceback.format_stack(frame)) if frame else ""
        raise AssertionError(f"{thread.name} has not ended within {limit:g} seconds:\n{where}")


def shut_down(server: BaseServer, thread: threading.Thread, limit: float = PATIENCE) -> None:
    """Stop a server, and wait for the requests that it still has, unless their threads are daemons.

    Args:
        server: that serves HTTP.
        thread: that runs its `serve_forever`.
        limit: maximum seconds for each request.

    Raises:
        AssertionError: it or a request still runs; the message says where.
    """
    shutdown = threading.Thread(target=server.shutdown, daemon=True)  # It waits without a limit.
    shutdown.start()
    join(thread)
    join(shutdown)
    for request in vars(server).get("_threads", ()):  # So would `server_close`.
        join(request, limit)
    server.server_close()
