"""Processes of the benchmarks: waiting until they are ready."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cli.bench.processes import free_port, wait_until_ready
from cli.errors import ExpectedError


def test_waiting_ends_when_the_url_responds(tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL) as process:
        try:
            url, log = f"http://127.0.0.1:{port}/", tmp_path / "log"
            wait_until_ready(process, url, log, 30)
            with pytest.raises(ExpectedError, match="was not ready within"):
                wait_until_ready(process, url + "missing", log, 0.2)
        finally:
            process.terminate()


def test_a_process_that_ends_is_reported_with_its_last_line(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("starting\nthe model is missing\n")
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
        with pytest.raises(ExpectedError, match="does not start: the model is missing"):
            wait_until_ready(process, f"http://127.0.0.1:{free_port()}/", log, 30)
