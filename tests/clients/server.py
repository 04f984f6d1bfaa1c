"""A HelixQ server for the clients: real processes, with the worker of `tests.clients.worker`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from jobs.settings import DEMO_CHECKPOINT
from tests import servers
from tests.acceptance.conftest import running

WORKER = (sys.executable, "-m", "tests.clients.worker")


class Server(NamedTuple):
    """What a client needs to know of a server."""

    url: str
    key: str


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """Start a server that requires keys, and with which chat completions remember earlier turns.

    Args:
        folder: to create, for its data. The path is short enough for Unix sockets.
    """
    with running(
        DEMO_CHECKPOINT,
        f"sqlite:///{folder / 'jobs.sqlite3'}",
        folder,
        program=WORKER,
        HELIXQ_AUTH="required",
        HELIXQ_CHAT_CONTEXT="turns",
    ) as service:
        create = servers.forked("keys", "create", "clients", "--json", environ=service.environ)
        assert create.wait() == 0, create.output
        yield Server(service.url, json.loads(create.output)["key"])
