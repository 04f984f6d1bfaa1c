"""Hosts on one machine: network namespaces with their own names, connected by virtual cables.

One of them has the servers: proxies that listen there for PostgreSQL and Redis. Each other one has a
cable to it. Without root, they are made in a user namespace, where the system allows it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.servers import PROGRAM, Process, forked, start, works

POSTGRESQL, REDIS = 5432, 6379
#: Maximum lifetime of a host, in seconds, in case the tests are killed.
LIFETIME = 600
#: The program of a host: it only keeps the namespace alive.
BE = f"ip link set lo up && echo there && exec sleep {LIFETIME}"
ROOT = os.geteuid() == 0
ISOLATE = ("unshare", "--net", *(() if ROOT else ("--user", "--map-root-user")))


class Host:
    """A host with a cable to the servers' host."""

    def __init__(self, name: str, number: int, hub: Process) -> None:
        """
        Args:
            name: as its processes are told.
            number: that no other host has.
            hub: the servers' host.
        """
        self.name = name
        #: The servers' address, as seen from here.
        self.servers = f"10.77.{number}.1"
        self._hub, self._cable = hub, f"to-{name}"
        self.process = start(
            [*at(hub), "unshare", "--net", "--uts", "sh", "-c", f"hostname {name} && {BE}"],
            os.environ,
        )
        self.process.wait_for("there")
        link = f"ip link add {self._cable} type veth peer name cable netns {self.process.popen.pid}"
        run(hub, f"{link} && ip addr add {self.servers}/24 dev {self._cable}")
        run(self.process, f"ip addr add 10.77.{number}.2/24 dev cable && ip link set cable up")
        self.plug()

    def plug(self) -> None:
        run(self._hub, f"ip link set {self._cable} up")

    def unplug(self) -> None:
        """Drop all packets silently."""
        run(self._hub, f"ip link set {self._cable} down")

    def worker(self, environ: Mapping[str, str], program: Sequence[str] = PROGRAM) -> Process:
        return forked("worker", environ=environ, program=program, namespaces=self.process.popen.pid)


@contextmanager
def hosts(names: Sequence[str], postgresql: Path, redis: Path) -> Iterator[list[Host]]:
    """Make hosts, and one with the servers; skip the test where the system does not allow it.

    Args:
        names: of the hosts.
        postgresql: the server's socket.
        redis: the server's socket.
    """
    cable = ("ip", "link", "add", "near", "type", "veth", "peer", "name", "far")
    if not works("nsenter", "--version") or not works(*ISOLATE, *cable):
        pytest.skip("no network namespaces here")
    with ExitStack() as stack:
        hub = start([*ISOLATE, "sh", "-c", BE], os.environ)
        stack.callback(hub.stop)
        hub.wait_for("there")
        for port, socket in ((POSTGRESQL, postgresql), (REDIS, redis)):
            proxy = (
                sys.executable,
                "-m",
                "tests.proxy",
                "0.0.0.0",  # noqa: S104 (of a namespace)
                str(port),
                str(socket),
            )
            process = start([*at(hub), *proxy], os.environ)
            stack.callback(process.kill)
            process.wait_for("listening")
        started = []
        for number, name in enumerate(names):
            started.append(Host(name, number, hub))
            stack.callback(started[-1].process.stop)
        yield started


def at(host: Process) -> tuple[str, ...]:
    """Return the command prefix that runs a program on a host."""
    user = () if ROOT else ("--user", "--preserve-credentials")
    return ("nsenter", "--target", str(host.popen.pid), "--net", "--uts", *user)


def run(host: Process, command: str) -> None:
    subprocess.run([*at(host), "sh", "-c", command], check=True)
