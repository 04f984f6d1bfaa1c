"""Event streams over HTTP, as their readers read them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from openai import AsyncOpenAI, OpenAI
from werkzeug.serving import make_server

import migrations
from cli.client import Client
from jobs import settings
from jobs.models import Job
from jobs.store import Store
from tests.conftest import RUNTIME, WORKER
from tests.integration.rows import OUTPUT, submit
from tests.servers import PATIENCE, RedisServer
from web import create_app
from web.services import Services
from web.v1 import events


class Web:
    """The application behind a real port, and what of its streams has gone past."""

    def __init__(self, url: str, database: str, redis: str) -> None:
        self.app = create_app(
            settings.load({"HELIXQ_DATABASE_URL": database, "HELIXQ_REDIS_URL": redis})
        )
        self.services: Services = self.app.extensions["helixq"]
        self.store: Store = self.services.store
        migrations.migrate(self.store.engine)
        self.store.register(WORKER, "localhost", 1, RUNTIME)
        self.url = url
        #: Comments that streams have sent.
        self.comments = threading.Semaphore(0)

    def __call__(self, environ: Any, start_response: Any) -> Iterator[bytes]:
        chunks: Any = self.app(environ, start_response)
        try:
            for chunk in chunks:
                yield chunk
                if chunk == events.WAITING.encode():
                    self.comments.release()
        finally:
            chunks.close()

    def finish(self, job: Job) -> None:
        """Do a worker's work."""
        for position in range(3):
            claim = self.store.claim(job.id, position, WORKER, job_timeout=60)
            assert claim is not None
            assert self.store.record(claim, OUTPUT)


@contextmanager
def serving(database: str, redis: str) -> Iterator[Web]:
    server = make_server("127.0.0.1", 0, Mock(), threaded=True)
    web = Web(f"http://127.0.0.1:{server.server_port}", database, redis)
    server.app = web
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield web
    web.services.stopping = lambda: True
    server.shutdown()
    thread.join()
    server.server_close()
    web.store.close()
    web.services.progress.close()


@pytest.fixture
def web(redis_server: RedisServer, tmp_path: Path) -> Iterator[Web]:
    with serving(f"sqlite:///{tmp_path / 'jobs.sqlite3'}", redis_server.url) as found:
        yield found


def read_with_openai(web: Web, job_id: str) -> list[str]:
    with OpenAI(base_url=f"{web.url}/v1", api_key="none", max_retries=0) as client:
        return [event.type for event in client.responses.retrieve(job_id, stream=True)]


def read_with_async_openai(web: Web, job_id: str) -> list[str]:
    async def read() -> list[str]:
        async with AsyncOpenAI(base_url=f"{web.url}/v1", api_key="none", max_retries=0) as client:
            stream = await client.responses.retrieve(job_id, stream=True)
            return [event.type async for event in stream]

    return asyncio.run(read())


def read_with_ours(web: Web, job_id: str) -> list[str]:
    """The reader of `helixq ask`."""
    with Client(web.url) as client:
        return [event["type"] for event in client.events(job_id)]


@pytest.mark.parametrize("read", [read_with_openai, read_with_async_openai, read_with_ours])
def test_a_silent_stream_shows_that_it_is_alive_and_no_reader_stumbles(
    web: Web, read: Callable[[Web, str], list[str]]
) -> None:
    web.services.keepalive = 0.02
    job = submit(web.store)
    with ThreadPoolExecutor(1) as pool:
        told = pool.submit(read, web, job.id)
        for _ in range(2):  # after the first events
            assert web.comments.acquire(timeout=PATIENCE)
        claim = web.store.claim(job.id, 0, WORKER, job_timeout=60)
        assert claim is not None
        assert web.comments.acquire(timeout=PATIENCE)  # within a stage
        web.store.record(claim, OUTPUT)
        web.services.cancel(job.id)
        types = told.result(PATIENCE)
    assert types[:2] == ["response.created", "response.queued"]
    assert types[-1] == "response.incomplete"
    assert "" not in types
