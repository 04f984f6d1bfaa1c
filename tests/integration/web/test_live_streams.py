"""Event streams of running jobs over HTTP, with several readers and real clients."""

from __future__ import annotations

import asyncio
import json
import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Self
from unittest.mock import Mock

import httpx2
import pytest
from openai import AsyncOpenAI, OpenAI
from werkzeug.serving import make_server

from cli.client import Client
from jobs.database import Database
from jobs.models import ANONYMOUS, Job
from jobs.progress import Follower, TextDeltas, Update
from jobs.use_cases import cancellation, stages, sweeping, workers
from jobs.use_cases.stages import Claim, Output
from tests import application
from tests.conftest import RUNTIME, WORKER, give_schema
from tests.executed_statements import executed, reads
from tests.integration.rows import OUTPUT, claim, let_leases_run_out, submit
from tests.joining import shut_down
from tests.servers import NO_TLS, PATIENCE, RedisServer
from web.services import Services
from web.v1 import feeds, sse


class Web:
    """The application on a real port."""

    def __init__(self, url: str, database: str, redis: str, *, migrate: bool) -> None:
        self.app = application.make({"HELIXQ_DATABASE_URL": database, "HELIXQ_REDIS_URL": redis})
        self.services: Services = self.app.extensions["helixq"]
        self.database: Database = self.services.database
        if migrate:
            give_schema(self.database.engine)
            workers.register(self.database, WORKER, "localhost", 1, RUNTIME)
        self.url = url
        #: Released for each comment that a stream sends.
        self.comments = threading.Semaphore(0)

    def __call__(self, environ: Any, start_response: Any) -> Iterator[bytes]:
        chunks: Any = self.app(environ, start_response)
        try:
            for chunk in chunks:
                yield chunk
                if chunk == sse.KEEPALIVE:
                    self.comments.release()
        finally:
            chunks.close()

    def cancel(self, job: Job) -> None:
        """Cancel a job, and notify its readers."""
        cancellation.cancel(self.database, ANONYMOUS, job.id)
        self.services.progress.publish_change(job.id)

    def generate(self, stage: Claim, start: int, pieces: list[str]) -> None:
        """Publish pieces of a stage's text, as a worker does."""
        self.services.progress.publish([(stage.job_id, TextDeltas(stage.text_id, start, pieces))])


@contextmanager
def serving(database: str, redis: str, *, migrate: bool = True) -> Iterator[Web]:
    """Serve the application; with ``migrate``, on a new database with a worker."""
    server = make_server("127.0.0.1", 0, Mock(), threaded=True)
    web = Web(f"http://127.0.0.1:{server.server_port}", database, redis, migrate=migrate)
    server.app = web
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield web
    finally:
        web.services.waiter.stopping = lambda: True
        shut_down(server, thread)
        web.database.close()
        web.services.progress.close()


@pytest.fixture
def web(redis_server: RedisServer, tmp_path: Path) -> Iterator[Web]:
    with serving(f"sqlite:///{tmp_path / 'jobs.sqlite3'}", redis_server.url) as web:
        yield web


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
def test_all_clients_ignore_keepalive_comments(
    web: Web, read: Callable[[Web, str], list[str]]
) -> None:
    web.app.extensions["helixq.feeds"].keepalive_interval = 0.02
    job = submit(web.database)
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read, web, job.id)
        for _ in range(2):  # after the first events
            assert web.comments.acquire(timeout=PATIENCE)
        stage = claim(web.database, job)
        assert web.comments.acquire(timeout=PATIENCE)  # within a stage
        stages.record(web.database, stage, OUTPUT)
        web.cancel(job)
        types = reading.result(PATIENCE)
    assert types[:2] == ["response.created", "response.queued"]
    assert types[-1] == "response.incomplete"
    assert "" not in types


#: The end of the name of the events that have a draft's pieces.
DELTA = "reasoning_text.delta"


class Reader:
    """Reads the stream of a job, event by event."""

    def __init__(self, web: Web, job: Job, after: int = -1) -> None:
        self._http = httpx2.Client(
            base_url=web.url, timeout=PATIENCE, trust_env=False, verify=NO_TLS
        )
        query = {"stream": "true", "starting_after": str(after)}
        path = f"/v1/responses/{job.id}"
        request = self._http.build_request("GET", path, params=query)
        self._reply = self._http.send(request, stream=True)
        self._lines = self._reply.iter_lines()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._reply.close()
        self._http.close()

    def until(self, kind: str) -> list[dict[str, Any]]:
        """Read up to the next event whose type ends with ``kind``; return the events."""
        events: list[dict[str, Any]] = []
        while not events or not events[-1]["type"].endswith(kind):
            line = next(self._lines)
            if line.startswith("data: "):
                events.append(json.loads(line.removeprefix("data: ")))
        return events

    def rest(self) -> list[dict[str, Any]]:
        """Read up to the end of the stream; return the events."""
        return [
            json.loads(line.removeprefix("data: "))
            for line in self._lines
            if line.startswith("data: ")
        ]


def deltas(events: list[dict[str, Any]]) -> list[str]:
    """The pieces of the texts. Summaries repeat them."""
    return [
        event["delta"]
        for event in events
        if event["type"].endswith(".delta") and "summary" not in event["type"]
    ]


def output(pieces: list[str]) -> Output:
    return replace(OUTPUT, text="".join(pieces), delta_lengths=[len(piece) for piece in pieces])


def selects(web: Web, pieces: int, readers: int) -> int:
    """Stream a stage with this many deltas to this many readers; return the number of queries."""
    job = submit(web.database)
    stage = claim(web.database, job)
    with executed(web.database.engine) as statements, ExitStack() as stack:
        all_readers = [stack.enter_context(Reader(web, job)) for _ in range(readers)]
        for reader in all_readers:
            reader.until("content_part.added")
        for number in range(pieces):
            web.generate(stage, number, ["piece "])
            for reader in all_readers:
                assert deltas(reader.until(DELTA)) == ["piece "]
        web.cancel(job)
        stages.keep_partial(web.database, stage, output(["piece "] * pieces))
        for reader in all_readers:
            assert reader.rest()[-1]["type"] == "response.incomplete"
    return len(reads(statements))


def test_database_reads_do_not_grow_with_text_or_readers(
    web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number of queries grows neither with the deltas nor with the readers."""
    # Those queries depend on time, not on the text.
    monkeypatch.setattr(feeds, "CHECK_INTERVAL", math.inf)
    monkeypatch.setattr(feeds, "PARTIAL_TEXT_INTERVAL", 60.0)
    short_text, long_text, eight_readers = (
        selects(web, 2, 1),
        selects(web, 100, 1),
        selects(web, 2, 8),
    )
    # Updates may be read together or one by one, so the number of queries varies a little.
    assert long_text < short_text + 98 / 4, "far fewer than one query for each of 98 more pieces"
    assert eight_readers < 3 * short_text, "far fewer than 8 times as many for 8 readers"


def test_readers_get_the_same_events_whenever_they_start(web: Web) -> None:
    pieces = ["One ", "two\n", "\u2028\r\n: ", "four."]
    job = submit(web.database)
    stage = claim(web.database, job)
    with Reader(web, job) as early:
        received = early.until("content_part.added")
        web.generate(stage, 0, pieces[:2])
        received += early.until(DELTA) + early.until(DELTA)
        with (
            Reader(web, job) as late,
            Reader(web, job, after=received[-2]["sequence_number"]) as resumed,
        ):
            streamed = len(received)
            assert late.until(DELTA) == received[:-2]
            assert resumed.until(DELTA) == received[-1:]
            web.generate(stage, 2, pieces[2:])
            received += early.until(DELTA) + early.until(DELTA)
            stages.record(web.database, stage, output(pieces))
            web.services.progress.publish_change(job.id)
            for stage_index in (1, 2):
                stages.record(web.database, claim(web.database, job, stage_index), output(pieces))
            web.services.progress.publish_change(job.id)
            received += early.rest()
            assert received[-1]["type"] == "response.completed"
            assert resumed.rest() == received[streamed:]
            late.rest()
    assert deltas(received) == pieces * 3
    assert [event["sequence_number"] for event in received] == list(range(len(received)))
    with Reader(web, job) as late_reader:
        assert late_reader.rest() == received


def test_a_stream_continues_where_a_lost_attempt_stopped(web: Web) -> None:
    """The next attempt has the same seed and so the same text."""
    pieces = ["a ", "b ", "c ", "d."]
    job = submit(web.database)
    lost = claim(web.database, job)
    with Reader(web, job) as reader:
        reader.until("content_part.added")
        web.generate(lost, 0, pieces[:2])
        received = reader.until(DELTA) + reader.until(DELTA)
        let_leases_run_out(web.database)
        assert sweeping.sweep(web.database).taken_back == [job.id]
        second_claim = claim(web.database, job)
        web.services.progress.publish_change(job.id)
        for number, piece in enumerate(pieces):
            web.generate(second_claim, number, [piece])
        received += reader.until(DELTA) + reader.until(DELTA)
        stages.record(web.database, second_claim, output(pieces))
        web.cancel(job)
        rest = reader.rest()
    assert deltas(received) == pieces
    assert deltas(rest) == []
    assert rest[0]["text"] == "".join(pieces)


def test_lost_text_does_not_delay_the_end_of_the_stream(
    web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeds, "PARTIAL_TEXT_TIMEOUT", 0.0)
    job = submit(web.database)
    stage = claim(web.database, job)
    with Reader(web, job) as reader:
        web.generate(stage, 0, ["a ", "b ", "c ", "d ", "e "])
        received = [event for _ in range(5) for event in reader.until(DELTA)]
        web.cancel(job)  # The worker does not record the partial text, and nothing sweeps.
        rest = reader.rest()
    assert rest[0]["text"] == "a b c d e "
    assert rest[-1]["type"] == "response.incomplete"
    numbers = [event["sequence_number"] for event in [received[-1], *rest]]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def test_the_leading_reader_may_disconnect(web: Web) -> None:
    job = submit(web.database)
    stage = claim(web.database, job)
    with Reader(web, job) as first, Reader(web, job) as second:
        first.until("content_part.added")
        second.until("content_part.added")
        first.__exit__()
        for number in range(5):
            web.generate(stage, number, ["x"])
            assert deltas(second.until(DELTA)) == ["x"]
        web.cancel(job)
        stages.keep_partial(web.database, stage, output(["x"] * 5))
        assert second.rest()[-1]["type"] == "response.incomplete"


class Waited(threading.Condition):
    """Counts the threads that have begun to wait."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = threading.Semaphore(0)

    def wait(self, timeout: float | None = None) -> bool:
        self.begun.release()  # Who notifies needs the lock, which `wait` gives back.
        return super().wait(timeout)


def test_a_reader_that_skips_events_delays_no_other(web: Web) -> None:
    """It is the one that reads for all, and what it reads is nothing to it."""
    job = submit(web.database)
    stage = claim(web.database, job)
    reading = threading.Semaphore(0)
    with (
        web.app.extensions["helixq.feeds"].follow(None, job.id) as feed,
        ThreadPoolExecutor(3) as pool,
    ):
        seen = len(feed.after(0, 0)[0])
        feed._changed = waited = Waited()
        follower: Follower = feed._follower

        def read(timeout: float) -> Update:
            reading.release()
            return follower.read(timeout)

        feed._follower = Mock(read=read)
        skipping = pool.submit(feed.after, 10**6, PATIENCE)
        assert reading.acquire(timeout=PATIENCE)
        others = [pool.submit(feed.after, seen, PATIENCE) for _ in range(2)]
        for _ in others:
            assert waited.begun.acquire(timeout=PATIENCE)
        web.generate(stage, 0, ["piece "])
        assert skipping.result(PATIENCE) == ([], False)
        for other in others:
            assert other.result(PATIENCE / 2)[0]


def test_without_redis_a_stream_has_each_text_when_its_stage_finishes(tmp_path: Path) -> None:
    with serving(f"sqlite:///{tmp_path / 'jobs.sqlite3'}", "unix:///nowhere.sock") as web:
        job = submit(web.database)
        with Reader(web, job) as reader:
            reader.until("queued")
            stages.record(web.database, claim(web.database, job), output(["a ", "b."]))
            assert deltas(reader.until("output_item.done")) == ["a ", "b."]
            for stage_index in (1, 2):
                stages.record(web.database, claim(web.database, job, stage_index), OUTPUT)
            assert reader.rest()[-1]["type"] == "response.completed"
