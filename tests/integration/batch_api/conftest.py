"""A web with OpenAI's client, and the duty that works on batches; the tests answer the jobs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.batch_api.service import BatchService, batch_service
from tests.servers import RedisServer


@pytest.fixture(scope="session")
def tokenizer_json(checkpoint: Path) -> str:
    return (checkpoint / "base" / "tokenizer.json").read_text()


@pytest.fixture
def service(
    database_url: str, redis_server: RedisServer, tokenizer_json: str
) -> Iterator[BatchService]:
    with batch_service(database_url, redis_server.url, tokenizer_json) as running:
        yield running
