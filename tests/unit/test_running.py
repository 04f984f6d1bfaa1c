"""How many requests run at the same time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from flask import Flask

from web import running
from web.running import MAX_RUNNING, Running

#: Seconds within which what is expected happens.
SOON = 30


class App:
    """An application whose ``/work`` takes until it is told to end."""

    def __init__(self) -> None:
        self.running = Running()
        self.started = threading.Semaphore(0)
        self.end = threading.Event()
        self.flask = Flask(__name__)
        self.flask.add_url_rule("/work", view_func=self.work)
        self.flask.add_url_rule("/wait", view_func=self.wait)
        self.flask.add_url_rule("/healthz", view_func=lambda: "ok")
        self.running.init_app(self.flask)

    def work(self) -> str:
        self.started.release()
        assert self.end.wait(SOON)
        return "done"

    def wait(self) -> str:
        with self.running.paused():
            return self.work()

    def get(self, path: str) -> str:
        return self.flask.test_client().get(path).text

    def begin(self, pool: ThreadPoolExecutor, path: str, count: int) -> None:
        """Request a path so many times, and wait until all run."""
        for _ in range(count):
            pool.submit(self.get, path)
        for _ in range(count):
            assert self.started.acquire(timeout=SOON)


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    return lambda seconds: monkeypatch.setattr(running, "PATIENCE", seconds)


def test_requests_that_are_too_many_wait_until_others_are_done(
    patience: Callable[[float], None],
) -> None:
    patience(SOON)
    app = App()
    with ThreadPoolExecutor(4 * MAX_RUNNING) as pool:
        app.begin(pool, "/work", MAX_RUNNING)
        late = pool.submit(app.get, "/work")
        assert app.get("/healthz") == "ok", "it does not wait"
        assert not app.started.acquire(timeout=0.1)
        app.end.set()
        assert late.result(SOON) == "done"


def test_requests_that_wait_for_jobs_keep_no_others_from_running(
    patience: Callable[[float], None],
) -> None:
    patience(SOON)
    app = App()
    with ThreadPoolExecutor(4 * MAX_RUNNING) as pool:
        app.begin(pool, "/wait", 2 * MAX_RUNNING)
        app.begin(pool, "/work", MAX_RUNNING)
        app.end.set()


def test_requests_that_hang_do_not_hold_up_others_for_long(
    patience: Callable[[float], None],
) -> None:
    patience(0.01)
    app = App()
    with ThreadPoolExecutor(4 * MAX_RUNNING) as pool:
        app.begin(pool, "/work", 2 * MAX_RUNNING)
        app.end.set()
    patience(SOON)
    with ThreadPoolExecutor(MAX_RUNNING) as pool:
        app.begin(pool, "/work", MAX_RUNNING)
