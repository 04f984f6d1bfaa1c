"""A Redis and a sentinel that speak only TLS. The redis-server of the Python packages does not; Debian's does."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.certificates import KEY, make_certificate
from tests.servers import Process, free_port, start

NAME = "main"
PASSWORD = "p/w@"


@dataclass(frozen=True)
class TlsServers:
    """The servers' URLs, and the file of the authority that signed their certificates."""

    url: str
    sentinel_url: str
    authority: Path


@contextmanager
def tls_servers(folder: Path) -> Iterator[TlsServers]:
    """Start them; skip the test where no redis-server with TLS is installed.

    Args:
        folder: an empty one.
    """
    program = shutil.which("redis-server")
    if program is None or not _speaks_tls(program):
        missing = "no redis-server with TLS is installed"
        if os.environ.get("REQUIRE_REDIS_TLS"):
            pytest.fail(missing)
        pytest.skip(missing)
    certificate = make_certificate(folder / "server")
    port, sentinel_port = free_port(), free_port()
    tls = ["--port", "0", "--bind", "127.0.0.1", "--tls-auth-clients", "no", "--tls-replication"]
    tls += ["yes", "--tls-ca-cert-file", str(certificate), "--tls-cert-file", str(certificate)]
    tls += ["--tls-key-file", str(folder / "server" / KEY)]
    configuration = folder / "sentinel.conf"
    configuration.write_text(
        f"sentinel monitor {NAME} 127.0.0.1 {port} 1\nsentinel auth-pass {NAME} {PASSWORD}\n"
    )
    processes: list[Process] = []
    try:
        options = ["--tls-port", str(port), "--save", "", "--requirepass", PASSWORD]
        processes.append(start([program, *tls, *options], os.environ, cwd=folder))
        processes[0].wait_for("Ready to accept connections")
        options = ["--tls-port", str(sentinel_port), "--sentinel"]
        processes.append(
            start([program, str(configuration), *tls, *options], os.environ, cwd=folder)
        )
        processes[1].wait_for("monitor master")
        yield TlsServers(
            f"rediss://:p%2Fw%40@127.0.0.1:{port}/1",
            f"rediss+sentinel://:p%2Fw%40@127.0.0.1:{sentinel_port}/{NAME}/1",
            certificate,
        )
    finally:
        for process in processes:
            process.stop()


def _speaks_tls(program: str) -> bool:
    # It stops at the first option that it does not know.
    tried = subprocess.run(
        [program, "--tls-port", "0", "--unknown"], capture_output=True, text=True, check=False
    )
    return "tls-port" not in tried.stdout + tried.stderr
