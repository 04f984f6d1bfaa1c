"""What the processes that run tests share: what each of them needs, made by the first one; and names."""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import fasteners

from tests.fork_client import SERVER


@cache
def _folder() -> Path:
    """Return a folder that ends with the tests: that of the server that has forked this process, if one has."""
    if address := os.environ.get(SERVER):
        return Path(address).parent
    folder = tempfile.mkdtemp(prefix="hq-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def made(name: str, make: Callable[[Path], object]) -> Path:
    """Return a folder that all processes share, which only one of them makes.

    Args:
        name: of the folder.
        make: writes what is in it, into a folder that does not exist yet.
    """
    folder = _folder() / name
    with fasteners.InterProcessLock(folder.with_suffix(".lock")):
        if not folder.exists():
            unfinished = folder.with_suffix(".new")
            make(unfinished)
            unfinished.rename(folder)
    return folder


def claimed(name: str) -> bool:
    """Whether a name is this process's own from now on: the first one that asks gets it."""
    try:
        (_folder() / name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def copied(name: str, make: Callable[[Path], object], folder: Path) -> Path:
    """Return a copy of such a folder, with the owners of its files.

    Args:
        name: of the shared folder.
        make: as of `made`.
        folder: where to; it does not exist.
    """
    subprocess.run(["/bin/cp", "-Rp", made(name, make), folder], check=True)
    return folder
