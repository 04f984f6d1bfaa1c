"""Checks at the start of a long measurement for the files and packages that it needs at its end."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from cli.errors import ExpectedError

#: File types that matplotlib writes.
PICTURES = (".svg", ".png", ".pdf")


def check_package(name: str) -> None:
    """Raise `ExpectedError` unless a package of the extra `eval` is installed."""
    if importlib.util.find_spec(name) is None:
        raise ExpectedError(f"{name} is not installed: pip install 'helixq[eval]'")


def check_writable(file: Path) -> None:
    """Raise `ExpectedError` if a file cannot be written."""
    target = file if file.exists() else file.absolute().parent
    if file.is_dir() or not os.access(target, os.W_OK):
        raise ExpectedError(f"{file} cannot be written")


def check_picture(file: Path) -> None:
    """Raise `ExpectedError` if matplotlib cannot write a picture to a file."""
    check_package("matplotlib")
    check_writable(file)
    if file.suffix not in PICTURES:
        raise ExpectedError(f"{file} should end in one of {', '.join(PICTURES)}")
