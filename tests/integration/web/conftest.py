"""A client of the application without a worker."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from click.testing import CliRunner, Result
from flask import Flask
from werkzeug.serving import make_server

from cli.main import main
from jobs.database import Database
from jobs.models import Job
from jobs.use_cases import workers
from jobs.use_cases.workers import Runtime
from tests.conftest import WORKER, new_database
from tests.executed_statements import executed, reads
from tests.integration.web.client import Client, register_worker, services_of, serving
from tests.joining import shut_down
from tests.servers import RedisServer


@pytest.fixture(scope="session")
def tokenizer_json(checkpoint: Path) -> str:
    """The tokenizer that the worker of these tests registered."""
    return (checkpoint / "base" / "tokenizer.json").read_text()


@pytest.fixture
def web(database_url: str, redis_server: RedisServer, tokenizer_json: str) -> Iterator[Client]:
    """A client. A worker is registered, but none runs."""
    with serving(database_url, redis_server.url) as client:
        register_worker(client, tokenizer_json)
        yield client


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def shared_web(
    request: pytest.FixtureRequest,
    redis_server: RedisServer,
    tokenizer_json: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Client]:
    """A client for all tests of a module, as `web` is for one."""
    url = new_database(request.param, request, tmp_path_factory.mktemp("db"))
    with serving(url, redis_server.url) as client:
        register_worker(client, tokenizer_json)
        yield client


@pytest.fixture
def emptied_web(shared_web: Client) -> Client:
    """The client of the module, with no jobs in the database."""
    with services_of(shared_web).database.write() as connection:
        connection.execute(sa.delete(Job))
    return shared_web


@pytest.fixture
def database(web: Client) -> Database:
    return services_of(web).database


@pytest.fixture
def address(web: Client) -> Iterator[str]:
    """The application's URL, served over HTTP."""
    server: Any = make_server("127.0.0.1", 0, web.application, threaded=True)
    server.daemon_threads = False  # closing waits for the requests that still run
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    shut_down(server, thread)


@pytest.fixture
def program(address: str, database_url: str) -> Callable[..., Result]:
    """Run `helixq` with arguments, on the application or on its database."""
    environ = {"HELIXQ_PORT": address.rpartition(":")[2], "HELIXQ_DATABASE_URL": database_url}
    return lambda *arguments, **options: CliRunner().invoke(
        main, [*map(str, arguments)], env=environ, **options
    )


@pytest.fixture
def jobs(program: Callable[..., Result]) -> Callable[..., Result]:
    """Run `helixq jobs` with arguments, on the application or on its database."""
    return functools.partial(program, "jobs")


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def app(
    request: pytest.FixtureRequest,
    redis_server: RedisServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Any]:
    """The application for all tests of a module. It requires keys, since it listens beyond this machine.

    Each test has owners of its own.
    """
    url = new_database(request.param, request, tmp_path_factory.mktemp("db"))
    host, allowed = "0.0.0.0", "127.0.0.0/8"  # noqa: S104 (nothing is bound)
    with serving(url, redis_server.url, HOST=host, WEBHOOK_ALLOWED_NETWORKS=allowed) as web:
        yield web.application


@pytest.fixture(scope="module")
def site(app: Flask, tokenizer_json: str) -> Flask:
    """The application, with a worker registered."""
    database = app.extensions["helixq"].database
    workers.register(
        database, WORKER, "localhost", 1, Runtime({"engine": "none"}, 4096, tokenizer_json)
    )
    return app


@pytest.fixture
def selects() -> Any:
    """Count the queries of a function."""

    def count(run: Any) -> int:
        with executed() as statements:
            run()
        return len(reads(statements))

    return count
