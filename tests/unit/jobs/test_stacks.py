"""What the log says of the threads of a process."""

from __future__ import annotations

import threading

from jobs import stacks
from tests.joining import join
from tests.polling import poll


def wait_for_the_end(is_over: threading.Event) -> None:
    secret = "sk-secret"
    is_over.wait()
    assert secret


def test_threads_that_do_the_same_have_one_line_without_values() -> None:
    is_over = threading.Event()
    threads = [
        threading.Thread(target=wait_for_the_end, args=(is_over,), name=f"reader {n}")
        for n in range(5)
    ]
    for thread in threads:
        thread.start()
    try:
        [line] = poll(lambda: [x for x in stacks.describe() if " and 2 more: " in x])
    finally:
        is_over.set()
        for thread in threads:
            join(thread)
    assert line.startswith("reader 0, reader 1, reader 2 and 2 more: threading.py:")
    assert "wait_for_the_end < " in line
    assert "sk-secret" not in line
