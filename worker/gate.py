"""Lets many stages run beside each other, or a single one alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Gate:
    """A lock that many share or one has alone; whoever waits to be alone goes first."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._sharing = 0
        self._waiting = 0
        self._taken = False

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Run beside others; wait while one runs alone or waits to."""
        with self._changed:
            self._changed.wait_for(lambda: not (self._taken or self._waiting))
            self._sharing += 1
        try:
            yield
        finally:
            with self._changed:
                self._sharing -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Run with nobody beside; wait for those who run."""
        with self._changed:
            self._waiting += 1
            self._changed.wait_for(lambda: not (self._taken or self._sharing))
            self._waiting -= 1
            self._taken = True
        try:
            yield
        finally:
            with self._changed:
                self._taken = False
                self._changed.notify_all()
