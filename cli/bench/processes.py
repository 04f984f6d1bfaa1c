"""HelixQ's commands as processes of a benchmark, with its own settings."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2

from cli.errors import ExpectedError
from jobs.program import PROGRAM, die_with_parent
from jobs.settings import Settings

#: Seconds between two polls of a starting process.
POLL_INTERVAL = 0.05


def free_port() -> int:
    """Return a port on loopback that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@contextmanager
def run(
    command: str, settings: Settings, environ: dict[str, str], *, path: str | None, timeout: float
) -> Iterator[int]:
    """Run a command of `helixq` in a process of its own until the end of the block.

    On Linux it ends with this process, too, however that ends.

    Args:
        command: ``up``, ``web`` or another one that runs until it is stopped.
        settings: its data folder and port. The log is written beside the folder, with the command's name.
        environ: further settings. Those of the caller do not reach the process.
        path: of the URL that responds with 200 when the process is ready; None not to wait for it.
        timeout: maximum number of seconds until it is ready.

    Yields:
        the process id.

    Raises:
        ExpectedError: the process ends, or is not ready in time. The message has the last line of its output.
    """
    own = {k: v for k, v in os.environ.items() if not k.startswith("HELIXQ_")}
    own |= {"HELIXQ_DATA_DIR": str(settings.data_dir), "HELIXQ_PORT": str(settings.port)}
    log = settings.data_dir.with_name(f"{settings.data_dir.name}-{command}.log")
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [*PROGRAM, command],
            env={**own, **environ},
            stdout=stream,
            stderr=stream,
            preexec_fn=die_with_parent,
        )
    try:
        if path is not None:
            wait_until_ready(process, settings.url + path, log, timeout)
        yield process.pid
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()


def wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path, timeout: float) -> None:
    """Poll a URL until it responds with 200.

    Args:
        process: which serves it.
        url: the URL.
        log: the process's output.
        timeout: maximum number of seconds.

    Raises:
        ExpectedError: the process has ended, or the time is over.
    """
    deadline = time.monotonic() + timeout
    with httpx2.Client(timeout=timeout, trust_env=False) as client:
        while time.monotonic() < deadline:
            if process.poll() is not None:
                last = log.read_text(errors="replace").strip().splitlines()[-1:]
                raise ExpectedError(f"the service does not start: {' '.join(last)}")
            try:
                if client.get(url).status_code == 200:
                    return
            except httpx2.TransportError:
                pass  # It does not listen yet.
            time.sleep(POLL_INTERVAL)  # A server that starts notifies nobody.
    raise ExpectedError(f"the service was not ready within {timeout:g} seconds")
