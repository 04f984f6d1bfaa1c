"""What a process uses, as Linux's /proc says."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

from cli.errors import ExpectedError

_MEMORY = re.compile(r"^(VmRSS|RssAnon):\s+(\d+) kB", re.MULTILINE)
_THREADS = re.compile(r"^Threads:\s+(\d+)", re.MULTILINE)


@dataclass(frozen=True)
class Usage:
    """What a process uses at one moment."""

    #: Resident bytes, and those of them that belong to no file.
    memory: int
    anonymous: int
    threads: int
    #: Open files and sockets.
    files: int


def check_system() -> None:
    """Raise `ExpectedError` where there is no /proc."""
    if sys.platform != "linux":
        raise ExpectedError("what another process uses is read from Linux's /proc")


def usage(pid: int) -> Usage:
    """Return what a process uses now.

    Raises:
        OSError: it has ended.
    """
    status = Path(f"/proc/{pid}/status").read_text()
    memory = {name: int(kilobytes) << 10 for name, kilobytes in _MEMORY.findall(status)}
    if not memory:
        raise ProcessLookupError(pid)  # A zombie has none.
    threads = _THREADS.search(status)
    return Usage(
        memory["VmRSS"],
        memory["RssAnon"],
        int(threads[1]) if threads else 0,
        sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir()),
    )


def resident(pid: int) -> int:
    """Return the bytes of memory that a process has now."""
    return usage(pid).memory


def opened(pid: int, file: Path) -> int:
    """Return how many times a process has a file open."""
    count = 0
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            count += entry.readlink() == file
        except OSError:
            continue  # It was closed meanwhile.
    return count


def processor(pid: int) -> float:
    """Return the processor time that a process's threads have used, in seconds."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def child(parent: int, word: str) -> int:
    """Return the process id of a part of `helixq up`.

    Args:
        parent: its process.
        word: an argument of the part's command, or the end of the program's path.

    Raises:
        ExpectedError: there is no such part.
    """
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            stat = (entry / "stat").read_text()
            arguments = (entry / "cmdline").read_text(errors="replace").split("\0")
        except OSError:
            continue  # It has ended.
        own = int(stat.rpartition(")")[2].split()[1]) == parent
        if own and (word in arguments or arguments[0].split(" ")[0].endswith(word)):
            return int(entry.name)
    raise ExpectedError(f"{word} does not run")
