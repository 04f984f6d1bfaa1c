"""A network between Redis and its clients on which a server answers everything with an error.

It simulates replies that a single Redis does not give on request: those of a cluster, of a server that is
loading its data, and of one that requires a password.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.proxy import Proxy


class ReplyingProxy(Proxy):
    """A proxy to a Redis that can answer in its place."""

    def __init__(self, target: Path) -> None:
        self._error: bytes | None = None
        super().__init__(target)

    def refuse(self, error: str) -> None:
        """Answer every command with this error, until `allow`."""
        self._error = error.encode()

    def allow(self) -> None:
        self._error = None

    def _passed_on(self, data: bytes, client: Any) -> bool:
        error = self._error
        if error is None:
            return True
        client.sendall(b"-%s\r\n" % error * commands(data))
        return False


def commands(data: bytes) -> int:
    """Count the commands that a client sent, which are arrays of texts."""
    lines = iter(data.split(b"\r\n"))
    count = 0
    for line in lines:
        if line.startswith(b"*"):
            count += 1
            for _ in range(2 * int(line[1:])):
                next(lines, None)
    return count


#: Error replies that Redis may give to any command.
REPLIES = (
    "ASK 3999 127.0.0.1:6381",
    "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
    "CLUSTERDOWN The cluster is down",
    "ERR max number of clients reached",
    "EXECABORT Transaction discarded because of previous errors.",
    "LOADING Redis is loading the dataset in memory",
    "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
    "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.",
    "MOVED 3999 127.0.0.1:6381",
    "NOAUTH Authentication required.",
    "NOPERM this user has no permissions to run the 'brpop' command",
    "NOREPLICAS Not enough good replicas to write.",
    "OOM command not allowed when used memory > 'maxmemory'.",
    "READONLY You can't write against a read only replica.",
    "TRYAGAIN Multiple keys request during rehashing of slot",
    "UNKILLABLE The busy script was sent by a master instance in the context of replication",
    "WRONGPASS invalid username-password pair or user is disabled.",
)
