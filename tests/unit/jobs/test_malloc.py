"""The arenas of glibc's allocator, in a process of its own."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

#: Threads that allocate, as those of the web and of a worker do; prints how many arenas there are then.
PROGRAM = """
import ctypes, re, threading
from jobs.malloc import limit_arenas

limit_arenas()
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.open_memstream.restype = ctypes.c_void_p
barrier = threading.Barrier(17, timeout=60)

def allocate():
    libc.malloc(ctypes.c_size_t(5000))
    barrier.wait()  # A thread that ends leaves its arena to others.

for _ in range(16):
    threading.Thread(target=allocate).start()
barrier.wait()
text, size = ctypes.c_char_p(), ctypes.c_size_t()
stream = ctypes.c_void_p(libc.open_memstream(ctypes.byref(text), ctypes.byref(size)))
libc.malloc_info(0, stream)
libc.fclose(stream)
print(len(re.findall(b"<heap nr=", text.value)))
"""


def arenas(**environ: str) -> int:
    """Return how many arenas the threads of a new process have."""
    root = str(Path(__file__).parents[3])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={"PYTHONPATH": root, **environ},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="not glibc")
def test_all_threads_share_two_arenas_unless_told_otherwise() -> None:
    assert arenas() == 2
    assert arenas(MALLOC_ARENA_MAX="5") == 5
