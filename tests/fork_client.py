"""``python -IS tests/fork_client.py ARGUMENT…``: ``python ARGUMENT…``, forked by `tests.fork_server`.

It imports little, so that it takes a fiftieth of a second. Its files are the program's, and it ends
with the program, and the program with it.
"""

from __future__ import annotations

import array
import json
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from typing import Any

#: The environment variable with the address of the server.
SERVER = "TESTS_FORK_SERVER"


def ask(
    address: str,
    arguments: Sequence[str],
    environ: Mapping[str, str],
    files: Sequence[int],
    namespaces: int | None = None,
) -> socket.socket:
    """Have a process forked.

    Args:
        address: of the server.
        arguments: of Python.
        environ: all environment variables.
        files: the standard input, output and error.
        namespaces: a process whose network and hostname it gets.

    Returns:
        a connection from which its pid comes, and then, at its end, its exit status: a line each. The
        process is asked to end when the connection is closed.
    """
    body = json.dumps(
        {
            "arguments": [*arguments],
            "environ": dict(environ),
            "folder": os.getcwd(),  # noqa: PTH109 (pathlib takes as long to import as all of this)
            "namespaces": namespaces,
        }
    ).encode()
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(address)
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))
    connection.sendmsg([len(body).to_bytes(4, "big")], [rights])
    connection.sendall(body)
    return connection


def receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Return what `ask` has sent: its arguments, and the files.

    Raises:
        EOFError: it was broken off.
    """
    head, files, _, _ = socket.recv_fds(connection, 4, 3)
    if len(head) < 4:
        raise EOFError
    body = b""
    while len(body) < int.from_bytes(head, "big"):
        if not (piece := connection.recv(1 << 20)):
            raise EOFError
        body += piece
    return json.loads(body), files


def main() -> int:
    connection = ask(os.environ[SERVER], sys.argv[1:], os.environ, (0, 1, 2))
    lines = connection.makefile()
    pid = int(lines.readline())
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: os.kill(pid, number))
    status = int(lines.readline())
    if status < 0:
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    return status


if __name__ == "__main__":
    sys.exit(main())
