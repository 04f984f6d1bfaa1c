"""Arize Phoenix, as its package on PyPI has it: a server that receives OpenTelemetry's traces of language models."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2

from tests.servers import free_port

#: Seconds that it may take to start, and until what it has received is there.
START, PATIENCE = 120.0, 30.0
#: What its pages show of a project.
_QUERY = """{ projects { edges { node { name traceCount recordCount tokenCountTotal } } } }"""


class Phoenix:
    """A running server."""

    def __init__(self, url: str) -> None:
        self._http = httpx2.Client(base_url=url, timeout=PATIENCE, trust_env=False)
        #: Where it receives traces.
        self.endpoint = f"{url}/v1/traces"

    def is_up(self) -> bool:
        try:
            return bool(self._http.get("/healthz").is_success)
        except httpx2.TransportError:
            return False

    def spans(self, count: int) -> list[dict[str, Any]]:
        """Wait until it has so many spans; return them."""
        give_up = time.monotonic() + PATIENCE
        while True:
            reply = self._http.get("/v1/projects/default/spans", params={"limit": 1000})
            spans: list[dict[str, Any]] = reply.json()["data"] if reply.is_success else []
            if len(spans) >= count or time.monotonic() > give_up:
                return spans
            time.sleep(0.2)  # nothing tells when it has stored them

    def project(self) -> dict[str, Any]:
        """Return how many traces, spans and tokens it counts."""
        reply = self._http.post("/graphql", json={"query": _QUERY}).json()
        [project] = [edge["node"] for edge in reply["data"]["projects"]["edges"]]
        assert isinstance(project, dict)
        return project

    def close(self) -> None:
        self._http.close()


@contextmanager
def running(python: str, folder: Path) -> Iterator[Phoenix]:
    """Start Phoenix; stop it at the end.

    Args:
        python: the interpreter of its environment.
        folder: for its database and its log.
    """
    folder.mkdir()
    port = free_port()
    environ = {
        **os.environ,
        "PHOENIX_WORKING_DIR": str(folder),
        "PHOENIX_HOST": "127.0.0.1",
        "PHOENIX_PORT": str(port),
        "PHOENIX_GRPC_PORT": str(free_port()),
        "PHOENIX_TELEMETRY_ENABLED": "false",
    }
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [python, "-m", "phoenix.server.main", "serve"],
            env=environ,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    phoenix = Phoenix(f"http://127.0.0.1:{port}")
    try:
        give_up = time.monotonic() + START
        while not phoenix.is_up():
            if process.poll() is not None or time.monotonic() > give_up:
                raise AssertionError((folder / "log").read_text(errors="replace"))
            time.sleep(0.2)  # it says so to nobody
        yield phoenix
    finally:
        phoenix.close()
        process.terminate()
        process.wait()
