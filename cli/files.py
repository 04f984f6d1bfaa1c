"""Files that commands read."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import IO

from cli.errors import ExpectedError


def open_file(file: Path) -> IO[bytes]:
    """Open a file to read; ``-`` is standard input."""
    if str(file) == "-":
        return sys.stdin.buffer
    try:
        return file.open("rb")
    except OSError as error:
        raise ExpectedError(f"{file} cannot be read ({error.strerror})") from error
