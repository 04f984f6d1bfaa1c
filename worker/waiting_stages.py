"""What a stage waits for before it is claimed: the end of a pause, or that nothing else runs here."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from celery.exceptions import Ignore
from fasteners import ReaderWriterLock

log = logging.getLogger(__name__)


class HeldStages:
    """Stages whose messages this worker took while the queue is paused. Thread-safe.

    Each of them holds its thread until the queue is resumed. Meanwhile the worker takes no further messages, and so
    those in Redis keep their order.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        #: What the threads wait for. Each release replaces it, for those that come later.
        self._released = threading.Event()
        #: Whether threads end instead of waiting.
        self._draining = threading.Event()

    @property
    def count(self) -> int:
        """The number of stages that are held."""
        return self._count

    def hold(self, job_id: str, stage_index: int) -> None:
        """Block until the next `release`.

        Raises:
            Ignore: the worker is stopping.
        """
        with self._lock:
            released = self._released
            self._count += 1
        log.info("%s: stage %d waits: the queue is paused", job_id, stage_index)
        try:
            if not self._draining.is_set():
                released.wait()
        finally:
            with self._lock:
                self._count -= 1
        if self._draining.is_set():
            raise Ignore("the worker is stopping")

    def release(self) -> None:
        """Let the stages that are held be claimed."""
        with self._lock:
            released, self._released = self._released, threading.Event()
        released.set()

    def drain(self) -> None:
        """Hold no stages any more, since the worker is stopping: `hold` raises Ignore from now on."""
        self._draining.set()
        self.release()


class ExclusiveStages:
    """Lets stages run beside each other, and some exclusively. Thread-safe."""

    def __init__(self) -> None:
        #: A stage that must run exclusively holds it to write, all others to read.
        self._running = ReaderWriterLock()
        self._lock = threading.Lock()
        #: Those that run exclusively, or wait until they can: (job id, stage index).
        self._stages: set[tuple[str, int]] = set()

    @contextmanager
    def lock(self, job_id: str, stage_index: int, *, exclusive: bool) -> Iterator[None]:
        """Let a stage run in the block, once nothing else runs if it is exclusive.

        Raises:
            Ignore: another thread waits to run it exclusively.
        """
        # Those that run may take long, and sweeps publish the stage again meanwhile: each message would take a thread.
        # That is so for the lock to read, too, since those who want it wait for those who wait to write.
        stage = job_id, stage_index
        with self._lock:
            if stage in self._stages:
                raise Ignore("another thread waits to run the stage")
            if exclusive:
                self._stages.add(stage)
        if not exclusive:
            with self._running.read_lock():
                yield
            return
        try:
            with self._running.write_lock():
                yield
        finally:
            with self._lock:
                self._stages.remove(stage)
