"""Measures what a live reader of an event stream costs the web, and the delay of its messages."""

from __future__ import annotations

import re
import selectors
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Self

from cli.bench import processes, resources, servers
from cli.bench.trends import quantile
from cli.errors import ExpectedError
from cli.tables import count
from jobs.database import Database
from jobs.models import ANONYMOUS
from jobs.pipeline import Sampling
from jobs.progress import Progress, TextDeltas
from jobs.settings import Settings
from jobs.use_cases import stages, submission, workers
from jobs.use_cases.stages import Claim
from jobs.use_cases.submission import NewJob
from jobs.use_cases.workers import Runtime

#: Seconds between two messages with new text: the worker's.
INTERVAL = 0.1
#: Seconds between two requests of an open page for where its job stands (`web/pages/static/helixq.js`).
NEWS_INTERVAL = 15.0
#: Maximum seconds for the web to start, and for a message to arrive.
TIMEOUT = 60.0
WORKER = "bench"
#: A delta contains the time of its publication, by the monotonic clock.
_DELTA = re.compile(rb'"content_index":0,"delta":"@(\d+\.\d+) "')


@dataclass(frozen=True)
class Result:
    """The measurement of a number of readers."""

    readers: int
    jobs: int
    #: Whether the readers are open pages, which ask where their jobs stand every `NEWS_INTERVAL` seconds.
    pages: bool
    #: The number of deltas of each text before the measurement.
    before: int
    messages: int
    #: Seconds of the web's processor time for each message to each reader.
    cost: float
    #: The web's processor time as a share of one core.
    core: float
    #: Seconds from publishing to reading: median and 99th percentile.
    median_delay: float
    late_delay: float


def run(
    folder: Path,
    cases: list[tuple[int, int, int, bool]],
    *,
    seconds: float,
    on_progress: Callable[[str], object] = lambda _: None,
) -> list[Result]:
    """Start Redis and a web, and read jobs' event streams while text is published as a worker does.

    Args:
        folder: an empty folder, for the data.
        cases: numbers of readers, of jobs that they share evenly, and of deltas published before; and whether the
            readers are open pages.
        seconds: how long to measure each.
        on_progress: called with a description of the next step.

    Raises:
        ExpectedError: the web does not start, or a message does not arrive.
    """
    resources.check_system()
    with ExitStack() as stack:
        settings = Settings(data_dir=folder / "data", port=processes.free_port())
        shared = stack.enter_context(servers.run(settings))
        workers.register(
            shared.database, WORKER, "localhost", 1, Runtime({"engine": "none"}, 1 << 20, "{}")
        )
        web = stack.enter_context(
            processes.run("web", settings, shared.environ, path="/healthz", timeout=TIMEOUT)
        )
        results = []
        for readers, jobs, before, pages in cases:
            on_progress(f"{count(readers, 'page' if pages else 'reader')} of {count(jobs, 'job')}")
            with Readers(settings, shared.database, shared.progress, web, readers, jobs) as case:
                results.append(case.measure(before, seconds, pages=pages))
        return results


@dataclass
class _Stream:
    """An open event stream."""

    connection: socket.socket
    #: The end of what was read, which may be a part of a delta.
    rest: bytes = b""


class Readers:
    """Open event streams of jobs whose first stage is running."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        progress: Progress,
        web: int,
        readers: int,
        jobs: int,
    ) -> None:
        self._progress = progress
        self._database = database
        self._web = web
        self._claims = [self._claim(number) for number in range(jobs)]
        self._published = 0
        self._selector = selectors.DefaultSelector()
        self._delays: list[float] = []
        self._received = 0
        self._asked = 0
        self._http = HTTPConnection("127.0.0.1", settings.port, timeout=TIMEOUT)
        for number in range(readers):
            job_id = self._claims[number % jobs].job_id
            connection = socket.create_connection(("127.0.0.1", settings.port))
            head = f"GET /v1/responses/{job_id}?stream=true HTTP/1.1\r\nHost: localhost\r\n"
            connection.sendall(f"{head}Connection: close\r\n\r\n".encode())
            connection.setblocking(False)
            self._selector.register(connection, selectors.EVENT_READ, _Stream(connection))
        self.readers = readers

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End all jobs, and read the streams to their end, so that the next readers can connect."""
        for claim in self._claims:
            stages.fail(self._database, claim, "server_error", "measured")
            self._progress.publish_change(claim.job_id)
        while self._selector.get_map():
            for key, _mask in self._selector.select(TIMEOUT):
                stream: _Stream = key.data
                if not stream.connection.recv(1 << 18):
                    self._selector.unregister(stream.connection)
                    stream.connection.close()
        self._selector.close()
        self._http.close()

    def measure(self, before: int, seconds: float, *, pages: bool = False) -> Result:
        for _ in range(before):
            self._publish()
        self._publish()
        self._read(until=self._published * self.readers)
        self._delays.clear()
        received, start, used = self._received, time.monotonic(), resources.processor(self._web)
        for turn in range(round(seconds / INTERVAL)):
            self._read(seconds=max(0.0, start + turn * INTERVAL - time.monotonic()))
            self._publish()
            if pages:
                self._ask(until=int((turn + 1) * INTERVAL * self.readers / NEWS_INTERVAL))
        self._read(until=self._published * self.readers)
        elapsed = time.monotonic() - start
        used = resources.processor(self._web) - used
        return Result(
            readers=self.readers,
            jobs=len(self._claims),
            before=before,
            messages=self._received - received,
            pages=pages,
            cost=used / (self._received - received),
            core=used / elapsed,
            median_delay=quantile(self._delays, 0.5),
            late_delay=quantile(self._delays, 0.99),
        )

    def _claim(self, number: int) -> Claim:
        new = NewJob(f"Question {number}?", "", Sampling(), 1, 5, background=True, metadata={})
        job, _ = submission.submit(self._database, ANONYMOUS, new, max_queued=1 << 30)
        claim = stages.claim(self._database, job.id, 0, WORKER, job_timeout=3600)
        if claim is None:
            raise ExpectedError("the job was claimed by another worker")
        return claim

    def _ask(self, *, until: int) -> None:
        """Ask where jobs stand, one after another, until ``until`` requests were made in all."""
        while self._asked < until:
            job_id = self._claims[self._asked % len(self._claims)].job_id
            self._http.request("GET", f"/jobs/{job_id}/news")
            reply = self._http.getresponse()
            reply.read()
            if reply.status != 200:
                raise ExpectedError(f"the web says {reply.status} of where a job stands")
            self._asked += 1

    def _publish(self) -> None:
        """Publish the next delta of every job, all in one request as a worker does."""
        deltas = [f"@{time.monotonic():.6f} "]
        self._progress.publish(
            [(c.job_id, TextDeltas(c.text_id, self._published, deltas)) for c in self._claims]
        )
        self._published += 1

    def _read(self, *, until: int | None = None, seconds: float = TIMEOUT) -> None:
        """Read until ``until`` deltas have arrived in all, or the time is over."""
        end = time.monotonic() + seconds
        while (until is None or self._received < until) and (left := end - time.monotonic()) > 0:
            for key, _ in self._selector.select(left):
                stream: _Stream = key.data
                data = stream.connection.recv(1 << 18)
                if not data:
                    raise ExpectedError("the web ended a stream")
                now = time.monotonic()
                buffer = stream.rest + data
                end_of_deltas = 0
                for match in _DELTA.finditer(buffer):
                    self._delays.append(now - float(match[1]))
                    self._received += 1
                    end_of_deltas = match.end()
                stream.rest = buffer[max(end_of_deltas, len(buffer) - 64) :]
        if until is not None and self._received < until:
            raise ExpectedError(f"{until - self._received} messages did not arrive")
