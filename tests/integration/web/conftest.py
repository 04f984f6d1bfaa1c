"""A client of the application without a worker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.database import Database
from jobs.use_cases import workers
from jobs.use_cases.workers import Runtime
from tests.conftest import WORKER
from tests.integration.web.client import Client, services_of, serving
from tests.servers import RedisServer


@pytest.fixture(scope="session")
def tokenizer_json(checkpoint: Path) -> str:
    """The tokenizer that the worker of these tests registered."""
    return (checkpoint / "base" / "tokenizer.json").read_text()


@pytest.fixture
def web(database_url: str, redis_server: RedisServer, tokenizer_json: str) -> Iterator[Client]:
    """A client. A worker is registered, but none runs."""
    with serving(database_url, redis_server.url) as client:
        runtime = Runtime({"engine": "none"}, 4096, tokenizer_json)
        workers.register(services_of(client).database, WORKER, "localhost", 1, runtime)
        yield client


@pytest.fixture
def database(web: Client) -> Database:
    return services_of(web).database
