"""A thread that does not end fails its test, with the place where it waits."""

from __future__ import annotations

import threading

import pytest

from tests.joining import join


def test_a_thread_that_hangs_is_named_with_its_place() -> None:
    released = threading.Event()

    def hang() -> None:
        released.wait()

    thread = threading.Thread(target=hang, name="hanging", daemon=True)
    thread.start()
    with pytest.raises(AssertionError, match=r"(?s)^hanging has not ended within 0\.1 .*in hang"):
        join(thread, limit=0.1)
    released.set()
    join(thread)
