"""A web in the tests' own process, without a worker, for pages that need none."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from werkzeug.serving import make_server

from jobs.database import Database
from tests import application
from tests.conftest import give_schema
from tests.joining import shut_down
from web.services import Services


@contextmanager
def served(folder: Path, auth: str) -> Iterator[tuple[str, Database]]:
    """Serve an empty database; yield its URL and the database.

    Args:
        folder: of the database.
        auth: the setting ``AUTH``.
    """
    app = application.make(
        {
            "HELIXQ_AUTH": auth,
            "HELIXQ_DATABASE_URL": f"sqlite:///{folder / 'jobs.sqlite3'}",
            "HELIXQ_REDIS_URL": "unix:///nowhere.sock",
        }
    )
    services: Services = app.extensions["helixq"]
    give_schema(services.database.engine)
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", services.database
    services.waiter.stopping = lambda: True
    shut_down(server, thread)
    services.keys.close()
    services.database.close()
    services.progress.close()
