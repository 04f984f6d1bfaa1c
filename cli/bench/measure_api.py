"""Measures what webs accept and answer while many jobs wait, and what event streams cost them."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import sqlalchemy as sa

from cli.bench import load, processes, resources, servers, stores
from cli.bench.common import demo_questions
from cli.bench.measure_readers import Readers
from jobs.database_engine import begin
from jobs.ids import new_id
from jobs.models import ANONYMOUS, Job
from jobs.pipeline import Sampling
from jobs.settings import DEMO_CHECKPOINT, Settings
from jobs.use_cases import submission, workers
from jobs.use_cases.submission import NewJob
from jobs.use_cases.workers import Runtime

#: Maximum seconds for a process to start.
TIMEOUT = 60.0
#: Requests that are open at any time.
CONNECTIONS = 32
#: Questions and polls a second at which their delays are measured.
ACCEPT_RATE = 300.0
POLL_RATE = 1500.0
WORKER = "bench"
CONTEXT = 4096


@dataclass(frozen=True)
class Result:
    """The measurement of one database."""

    database: str
    webs: int
    #: Jobs that waited at the beginning.
    waiting: int
    #: Requests a second at most, and seconds at `ACCEPT_RATE` and `POLL_RATE`: median and 99th percentile.
    accepts: float
    accept_median: float
    accept_late: float
    polls: float
    poll_median: float
    poll_late: float
    #: Seconds of the webs' processor time for each request.
    accept_cost: float
    poll_cost: float
    #: Event streams, messages to each, and the share of a core that all of them took.
    streams: int
    messages: int
    stream_share: float
    stream_late: float


def run(
    folder: Path,
    *,
    webs: int,
    waiting: int,
    streams: int,
    seconds: float,
    on_progress: Callable[[str], object] = lambda _: None,
) -> list[Result]:
    """Measure with SQLite, and with PostgreSQL if the package that embeds it is installed.

    Args:
        folder: an empty folder, for the data.
        webs: the number of web processes.
        waiting: the number of jobs that wait.
        streams: the number of event streams at once.
        seconds: of each measurement.
        on_progress: called with a description of the next step.

    Raises:
        ExpectedError: a web does not start, a reply is wrong, or an event is lost.
    """
    resources.check_system()
    results = []
    for store in stores.available(on_progress):
        own = folder / store.name.lower()
        with store.empty(own) as url, _Service(own, url, webs) as service:

            def tell(text: str, name: str = store.name) -> None:
                on_progress(f"{name}: {text}")

            results.append(service.measure(store.name, waiting, streams, seconds, tell))
    return results


class _Service:
    """Redis and webs, without a worker, so that jobs wait."""

    def __init__(self, folder: Path, database_url: str, webs: int) -> None:
        self._folder = folder
        self._url = database_url
        self._webs = webs

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            first = Settings(data_dir=self._folder / "data", database_url=self._url)
            shared = stack.enter_context(servers.run(first))
            self._database, self._progress = shared.database, shared.progress
            tokenizer = (DEMO_CHECKPOINT / "base" / "tokenizer.json").read_text(encoding="utf-8")
            runtime = Runtime({"engine": "none"}, CONTEXT, tokenizer)
            workers.register(self._database, WORKER, "localhost", 1, runtime)
            environ = {**shared.environ, "HELIXQ_MAX_QUEUED": "1000000"}
            self._settings, self._pids = [], []
            for number in range(self._webs):
                settings = Settings(
                    data_dir=self._folder / f"web-{number}", port=processes.free_port()
                )
                web = processes.run("web", settings, environ, path="/healthz", timeout=TIMEOUT)
                self._pids.append(stack.enter_context(web))
                self._settings.append(settings)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def measure(
        self,
        name: str,
        waiting: int,
        streams: int,
        seconds: float,
        on_progress: Callable[[str], object],
    ) -> Result:
        job_ids = self._fill(waiting)
        on_progress(f"accepting questions while {waiting:,} jobs wait")
        self._load(_questions(), 202, 1.0)
        accepts, accept_cost = self._load(_questions(), 202, seconds)
        on_progress(f"accepting {ACCEPT_RATE:g} questions a second")
        paced_accepts, _ = self._load(_questions(), 202, seconds, ACCEPT_RATE)
        on_progress(f"answering polls while {waiting:,} jobs wait")
        # Clients poll a job again and again: each web has shown each job before.
        for settings in self._settings:
            load.run(
                [settings.port],
                _polls(job_ids),
                status=200,
                connections=CONNECTIONS,
                seconds=TIMEOUT,
                maximum=len(job_ids),
            )
        polls, poll_cost = self._load(_polls(job_ids), 200, seconds)
        on_progress(f"answering {POLL_RATE:g} polls a second")
        paced_polls, _ = self._load(_polls(job_ids), 200, seconds, POLL_RATE)
        on_progress(f"{streams} event streams")
        with Readers(
            self._settings[0], self._database, self._progress, self._pids[0], streams, streams
        ) as readers:
            read = readers.measure(0, seconds)
        return Result(
            database=name,
            webs=self._webs,
            waiting=len(job_ids),
            accepts=accepts.rate,
            accept_median=paced_accepts.quantile(0.5),
            accept_late=paced_accepts.quantile(0.99),
            polls=polls.rate,
            poll_median=paced_polls.quantile(0.5),
            poll_late=paced_polls.quantile(0.99),
            accept_cost=accept_cost,
            poll_cost=poll_cost,
            streams=streams,
            messages=read.messages // streams,
            stream_share=read.cost * read.messages / seconds,
            stream_late=read.late_delay,
        )

    def _load(
        self, requests: Iterator[bytes], status: int, seconds: float, rate: float | None = None
    ) -> tuple[load.Load, float]:
        used = sum(map(resources.processor, self._pids))
        done = load.run(
            [settings.port for settings in self._settings],
            requests,
            status=status,
            connections=CONNECTIONS,
            seconds=seconds,
            rate=rate,
        )
        return done, (sum(map(resources.processor, self._pids)) - used) / len(done.delays)

    def _fill(self, waiting: int) -> list[str]:
        """Add jobs that wait; return their ids."""
        job_ids = [new_id("resp_") for _ in range(waiting)]
        new = NewJob("Why?", "", Sampling(), 1, 5, background=True, metadata={})
        job, _ = submission.submit(self._database, ANONYMOUS, new, max_queued=1 << 30)
        columns = [column.name for column in Job.__table__.columns if column.name != "id"]
        copy = sa.insert(Job).from_select(
            ["id", *columns],
            sa.select(
                sa.bindparam("new_id", type_=sa.String),
                *(Job.__table__.c[name] for name in columns),
            ).where(Job.id == job.id),
        )
        with self._database.engine.begin() as connection:
            begin(connection, write=True)
            connection.execute(copy, [{"new_id": job_id} for job_id in job_ids])
            connection.execute(sa.delete(Job).where(Job.id == job.id))
        return job_ids


def _questions() -> Iterator[bytes]:
    """Yield requests that ask questions in the background, without end."""
    bodies: list[dict[str, object]] = [
        {"model": "helixnet", "input": question, "background": True}
        for question in demo_questions(1000)
    ]
    return itertools.cycle([load.request("POST", "/v1/responses", body) for body in bodies])


def _polls(job_ids: list[str]) -> Iterator[bytes]:
    """Yield requests for jobs in random order, without end."""
    shuffled = random.Random(0).sample(job_ids, len(job_ids))
    return itertools.cycle([load.request("GET", f"/v1/responses/{job_id}") for job_id in shuffled])
