"""The web process: gunicorn with threads, since replies and streams wait for jobs."""

from __future__ import annotations

import errno
import logging
import socket
from typing import Any

from gunicorn.app.base import BaseApplication

from jobs.settings import Settings
from web import create_app
from web.services import WAITING

log = logging.getLogger(__name__)

#: Requests served at once: those that wait for jobs, and some for the others.
THREADS = WAITING + 56
#: Seconds that replies in progress may take to finish after SIGTERM.
GRACE = 5


class AddressError(Exception):
    """The web cannot listen where the settings say; the message says what to do."""


class _Server(BaseApplication):  # type: ignore[misc]  # gunicorn ships no types
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        super().__init__()

    def load_config(self) -> None:
        host = f"[{self._settings.host}]" if ":" in self._settings.host else self._settings.host
        options: dict[str, Any] = {
            "bind": f"{host}:{self._settings.port}",
            "worker_class": "gthread",
            "workers": 1,
            "threads": THREADS,
            "timeout": 60,
            "graceful_timeout": GRACE,
            "loglevel": "warning",
            "control_socket_disable": True,
            "post_worker_init": _tell_stopping,
            "when_ready": _say_ready,
        }
        for name, value in options.items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        return create_app(self._settings)


def _say_ready(server: Any) -> None:
    log.info("listening at %s", ", ".join(str(listener) for listener in server.LISTENERS))


def _tell_stopping(worker: Any) -> None:
    """Let waiting replies and open streams know when gunicorn wants to stop."""
    worker.wsgi.extensions["helixq"].stopping = lambda: not worker.alive


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; leaves through `SystemExit`.

    Raises:
        AddressError: the address is taken or not this machine's.
    """
    check_address(settings)
    _Server(settings).run()


def check_address(settings: Settings) -> None:
    """Make sure that the web can listen: gunicorn would only try again and log.

    Raises:
        AddressError: it cannot.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM
        )[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        place = f"{settings.host}:{settings.port}"
        if error.errno == errno.EADDRINUSE:
            raise AddressError(
                f"{place} is taken by another program: stop it, or set HELIXQ_PORT"
            ) from error
        raise AddressError(
            f"cannot listen on {place} ({error.strerror}): check HELIXQ_HOST and HELIXQ_PORT"
        ) from error
