"""Measures jobs an hour by the number of workers, with simulated GPUs and with the demo's model."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import sqlalchemy as sa

from cli import tables
from cli.bench import load, processes, resources, servers, simulated_server, stores
from cli.bench.common import demo_questions
from cli.bench.simulated_server import SimulatedServer
from cli.errors import ExpectedError
from jobs.models import Job, Status
from jobs.pipeline import Role, stages
from jobs.settings import Settings
from jobs.use_cases import workers

#: Maximum seconds for a process to start, and for questions to be accepted.
TIMEOUT = 120.0
#: Stages of a job with one round.
STAGES = len(stages(1))
#: Requests that submit questions at the same time.
CONNECTIONS = 32
#: Pieces a second in which simulated texts are streamed. A worker publishes texts as often.
PIECES = 10.0
#: Seconds between two checks of the queue.
POLL_INTERVAL = 0.1
SIMULATED, DEMO = "simulated", "demo"


@dataclass(frozen=True)
class Result:
    """The measurement of one number of workers."""

    database: str
    #: `SIMULATED` or `DEMO`.
    engine: str
    workers: int
    jobs_an_hour: float
    #: The jobs an hour that the simulated GPUs could do at most; None for the demo's model.
    possible: float | None
    #: Milliseconds of processor time for each job: of its worker, and of Redis.
    worker_cost: float
    redis_cost: float


def run(
    folder: Path,
    *,
    simulated: Sequence[int],
    demo: Sequence[int],
    slots: int,
    text_seconds: float,
    tokens: int,
    seconds: float,
    on_progress: Callable[[str], object] = lambda _: None,
) -> list[Result]:
    """Measure with SQLite, and with PostgreSQL if the package that embeds it is installed.

    Args:
        folder: an empty folder, for the data.
        simulated: numbers of workers whose GPU is simulated, in ascending order.
        demo: numbers of workers with the demo's model, in ascending order.
        slots: of each worker.
        text_seconds: that each simulated text takes.
        tokens: of each text.
        seconds: how long to count jobs that end, after the first ones have ended.
        on_progress: called with a description of the next step.

    Raises:
        ExpectedError: a process does not start, or the queue becomes empty.
    """
    resources.check_system()
    results: list[Result] = []
    pieces = max(1, round(PIECES * text_seconds))
    server = SimulatedServer(text_seconds, tokens, pieces)
    with simulated_server.running(server) as port:
        engines = {
            SIMULATED: (simulated, _elsewhere(port)),
            # More threads than cores would wait for each other.
            DEMO: (demo, {"OMP_NUM_THREADS": "1"}),
        }
        for store in stores.available(on_progress):
            for engine, (counts, environ) in engines.items():
                if not counts:
                    continue
                own = folder / f"{store.name.lower()}-{engine}"
                environ = {**environ, "HELIXQ_SLOTS": str(slots)}
                with (
                    store.empty(own) as url,
                    _Service(own, store.name, engine, url, environ, tokens) as service,
                ):
                    for count in counts:
                        on_progress(f"{store.name}: {tables.count(count, 'worker')}, {engine}")
                        job_seconds = STAGES * text_seconds if engine == SIMULATED else None
                        results.append(service.measure(count, slots, seconds, job_seconds))
    return results


def _elsewhere(port: int) -> dict[str, str]:
    """Return the settings of a worker that asks the simulated server."""
    return {
        "HELIXQ_ENGINE": "openai",
        "HELIXQ_ENGINE_URL": f"http://127.0.0.1:{port}/v1",
        "HELIXQ_ADAPTERS": ",".join(f"{role}={simulated_server.MODEL}" for role in Role),
    }


class _Service:
    """Redis, a web, and more and more workers."""

    def __init__(
        self,
        folder: Path,
        name: str,
        engine: str,
        database_url: str,
        environ: dict[str, str],
        tokens: int,
    ) -> None:
        """
        Args:
            folder: for the data.
            name: of the database, for the results.
            engine: of the workers, for the results.
            database_url: an empty database.
            environ: settings of the workers.
            tokens: maximum number of new tokens per stage.
        """
        self._folder, self._name, self._engine = folder, name, engine
        self._url, self._environ = database_url, environ
        self._requests = _requests(tokens)
        self._pids: list[int] = []

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            first = Settings(data_dir=self._folder / "data", database_url=self._url)
            shared = stack.enter_context(servers.run(first))
            self._database, self._redis = shared.database, shared.redis
            self._shared = {**shared.environ, "HELIXQ_MAX_QUEUED": "1000000"}
            self._web = Settings(data_dir=self._folder / "web", port=processes.free_port())
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def measure(self, count: int, slots: int, seconds: float, job_seconds: float | None) -> Result:
        """Run a number of workers, and count the jobs that they complete while the queue is kept full.

        Args:
            count: of the workers.
            slots: of each.
            seconds: how long to count at least.
            job_seconds: of a job whose GPU is simulated.
        """
        if job_seconds is not None:
            # Slots that began together end together. A part of such a wave would distort the rate.
            seconds = math.ceil(seconds / job_seconds) * job_seconds
        self._start(count)
        at_once = count * slots
        self._ask(2 * at_once)
        # Each slot has had a job, so that workers are at any point of their jobs.
        wanted, deadline = self._ended() + at_once, time.monotonic() + TIMEOUT
        while self._ended() < wanted:
            if time.monotonic() > deadline:
                raise ExpectedError(f"{at_once} jobs did not end within {TIMEOUT:g} seconds")
            self._top_up(at_once)
        start, first, used = time.monotonic(), self._ended(), self._used()
        # A busy machine may take longer for a single job.
        while (elapsed := time.monotonic() - start) < seconds or self._ended() == first:
            if elapsed > seconds + TIMEOUT:
                raise ExpectedError(f"no job ended within {elapsed:.0f} seconds")
            self._top_up(at_once)
        done = self._ended() - first
        workers_used, redis_used = (b - a for a, b in zip(used, self._used(), strict=True))
        return Result(
            database=self._name,
            engine=self._engine,
            workers=count,
            jobs_an_hour=done / elapsed * 3600,
            possible=None if job_seconds is None else at_once / job_seconds * 3600,
            worker_cost=workers_used / done * 1000,
            redis_cost=redis_used / done * 1000,
        )

    def _start(self, count: int) -> None:
        """Start workers until there are ``count``, and the web with the first ones."""
        is_first = not self._pids
        for number in range(len(self._pids), count):
            settings = Settings(data_dir=self._folder / f"worker-{number}")
            environ = {**self._shared, **self._environ}
            worker = processes.run("worker", settings, environ, path=None, timeout=TIMEOUT)
            self._pids.append(self._stack.enter_context(worker))
        deadline = time.monotonic() + TIMEOUT
        while len(workers.list_ready(self._database)) < count:
            if time.monotonic() > deadline:
                raise ExpectedError(f"{count} workers were not ready within {TIMEOUT:g} seconds")
            time.sleep(POLL_INTERVAL)  # A row notifies nobody.
        if is_first:
            self._stack.enter_context(
                processes.run("web", self._web, self._shared, path="/readyz", timeout=TIMEOUT)
            )

    def _ask(self, jobs: int) -> None:
        load.run(
            [self._web.port],
            self._requests,
            status=202,
            connections=CONNECTIONS,
            seconds=TIMEOUT,
            maximum=jobs,
        )

    def _top_up(self, waiting: int) -> None:
        """Wait a moment, and then submit questions until ``waiting`` are queued again."""
        time.sleep(POLL_INTERVAL)  # Jobs that end notify nobody here.
        missing = waiting - self._count(Job.status == Status.QUEUED)
        if missing > 0:
            self._ask(missing)

    def _ended(self) -> int:
        return self._count(Job.finished_at.is_not(None))

    def _count(self, condition: sa.ColumnElement[bool]) -> int:
        statement = sa.select(sa.func.count()).select_from(Job).where(condition)
        with self._database.read() as connection:
            return int(connection.execute(statement).scalar_one())

    def _used(self) -> tuple[float, float]:
        """Return the processor time of all workers, and of Redis, in seconds."""
        return sum(map(resources.processor, self._pids)), resources.processor(self._redis)


def _requests(tokens: int) -> Iterator[bytes]:
    """Yield requests that ask questions in the background, without end."""
    for question in itertools.cycle(demo_questions(1000)):
        body = {"input": question, "background": True, "max_output_tokens": tokens}
        yield load.request("POST", "/v1/responses", body)
