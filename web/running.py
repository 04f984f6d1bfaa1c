"""How many requests run at the same time.

Python runs one thread at a time. A thread that comes back from the database or from Redis waits until the
others have had their turns, and on SQLite everybody who wants to write waits for it. So with many requests at
once, each costs half as much again, and fewer are served. Requests beyond a maximum wait here instead.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from flask import Flask

#: Requests that run at the same time.
MAX_RUNNING = 8
#: Seconds after which a request runs nevertheless: those before it may wait for a database that does not
#: respond.
PATIENCE = 1.0
#: Paths that need no slot: supervisors ask whether the process responds, however busy it is.
EXEMPT = {"/healthz", "/livez", "/health"}


class Running:
    """The requests of a process that run. Threads share it."""

    def __init__(self) -> None:
        self._slots = threading.Semaphore(MAX_RUNNING)
        self._thread = threading.local()

    def init_app(self, app: Flask) -> None:
        """Limit the requests of an application."""
        inner: WSGIApplication = app.wsgi_app

        def run(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            if environ["PATH_INFO"] in EXEMPT:
                return inner(environ, start_response)
            with self._slot():
                return inner(environ, start_response)

        app.wsgi_app = run  # type: ignore[method-assign]  # Flask's way to add a middleware

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let others run while the current request waits for something that may take long."""
        if not getattr(self._thread, "has_slot", False):
            yield
            return
        self._give_back()
        try:
            yield
        finally:
            self._take()

    @contextmanager
    def _slot(self) -> Iterator[None]:
        self._take()
        try:
            yield
        finally:
            self._give_back()

    def _take(self) -> None:
        self._thread.has_slot = self._slots.acquire(timeout=PATIENCE)

    def _give_back(self) -> None:
        if self._thread.has_slot:
            self._thread.has_slot = False
            self._slots.release()
