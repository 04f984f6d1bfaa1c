"""A million stored jobs, and how fast they are listed, searched, read and added to."""

from __future__ import annotations

import datetime as dt
import json
import multiprocessing
import random
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from pathlib import Path

import migrations
from cli.bench import stores
from cli.bench.made_history import DAYS, fill
from cli.errors import ExpectedError
from jobs.database import Database
from jobs.database_url import checked
from jobs.enums import Order
from jobs.maintenance import INDEX_INTERVAL
from jobs.models import ANONYMOUS, Status
from jobs.pipeline import Sampling
from jobs.protocol.history import history, page
from jobs.protocol.stats import statistics as statistics_as_json
from jobs.search.filters import Filters
from jobs.search.query import parse
from jobs.use_cases import indexing, queries, searching, stages, submission
from jobs.use_cases import statistics as statistics_of_jobs
from jobs.use_cases.stages import Output
from jobs.use_cases.statistics import By, Query
from jobs.use_cases.submission import NewJob

LIMIT = 20
#: Jobs that are written before it is the other side's turn.
ROUND = 50
#: Jobs written a second: 72,000 an hour, more than one GPU answers.
RATE = 20.0
UNINDEXED = "finished_at IS NOT NULL AND worker_id IS NULL AND (unindexed > 0 OR counted IS NULL)"


@dataclass(frozen=True)
class Read:
    """How fast pages of one kind were read."""

    name: str
    #: Seconds: median and 95th percentile.
    median: float
    late: float
    #: Jobs of a page, on average, or that were counted.
    found: float


@dataclass(frozen=True)
class Result:
    """The measurement of one database."""

    database: str
    jobs: int
    reads: list[Read]
    #: Seconds of all writes of a job at `RATE`: without the index, and while another process indexes.
    plain_write: float
    indexed_write: float
    #: Seconds that the other process takes to index a job.
    indexing: float
    #: Bytes of everything, and of documents and index.
    size: int
    index_size: int


def run(
    folder: Path,
    *,
    jobs: int,
    pages: int,
    writes: int,
    on_progress: Callable[[str], object] = lambda _: None,
) -> Iterator[Result]:
    """Measure with SQLite, and with PostgreSQL if the package that embeds it is installed.

    Each result is there once it is measured: what happens to the other database does not take it away.

    Args:
        folder: an empty folder, for the data.
        jobs: the number of stored jobs.
        pages: the number of pages to read of each list.
        writes: the number of jobs to write, with and without the index each.
        on_progress: called with a description of the next step.
    """
    for store in stores.available(on_progress):
        with store.empty(folder / store.name.lower()) as empty:
            url = checked(empty)
            database = Database(url)
            migrations.migrate(database.engine)

            def tell(text: str, name: str = store.name) -> None:
                on_progress(f"{name}: {text}")

            ids = fill(database, jobs, tell)
            tell("reading")
            reads = [
                *_reads(database, pages),
                _histories(database, ids, pages),
                *_statistics(database, pages),
            ]
            tell("writing")
            plain, indexed, cost = _writes(database, url, writes)
            size, index_size = _sizes(database)
            database.close()
            yield Result(store.name, jobs, reads, plain, indexed, cost, size, index_size)


#: What is listed: a name, filters, and the order.
LISTS: tuple[tuple[str, Filters, Order], ...] = (
    ("all", Filters(), Order.NEWEST),
    ("`status=failed`", Filters(statuses=(Status.FAILED,)), Order.NEWEST),
    (
        "`status=failed,cancelled`",
        Filters(statuses=(Status.FAILED, Status.CANCELLED)),
        Order.NEWEST,
    ),
    ("`adapter=`, half of all", Filters(adapter="lora-v1"), Order.NEWEST),
    ("`adapter=`, one in 1,000", Filters(adapter="lora-rare"), Order.NEWEST),
    ("`model=`, half of all", Filters(model=f"{1:064x}"), Order.NEWEST),
    ("`worker=`, none", Filters(worker="nobody"), Order.NEWEST),
    ("`metadata.team=`, a fifth", Filters(metadata={"team": "team-3"}), Order.NEWEST),
    ("`metadata.case=`, one in 1,000", Filters(metadata={"case": "case-77"}), Order.NEWEST),
    ("`critique_rating=-1`, 1.7 in 100", Filters(critique_rating=-1), Order.NEWEST),
    ("`critique_rating=none`, 95 in 100", Filters(critique_rating=None), Order.NEWEST),
    ("`reviewer=`, 2.5 in 100", Filters(reviewer="reviewer-1"), Order.NEWEST),
    (
        "a word of nearly all, `rating=none`",
        Filters(query=parse("answer"), rating=None),
        Order.NEWEST,
    ),
    ("`min_attempts=2`", Filters(min_attempts=2), Order.NEWEST),
    ("`min_changed=0.5&max_changed=0.6`", Filters(min_changed=0.5, max_changed=0.6), Order.NEWEST),
    ("`min_duration=60`", Filters(min_duration=60), Order.NEWEST),
    ("all, the most changed first", Filters(), Order.MOST_CHANGED),
    ("a word of one in 1,000, so", Filters(query=parse("topic77")), Order.MOST_CHANGED),
    ("`adapter=`, one in 1,000, the longest first", Filters(adapter="lora-rare"), Order.LONGEST),
    (
        "`adapter=…&status=failed`, none",
        Filters(adapter="lora-rare", statuses=(Status.FAILED,)),
        Order.NEWEST,
    ),
    (
        "`adapter=…&model=…`, half each, none",
        Filters(adapter="lora-v2", model=f"{0:064x}"),
        Order.NEWEST,
    ),
    ("a word of one job", Filters(query=parse("copy777")), Order.RELEVANCE),
    ("a word of one in 1,000", Filters(query=parse("topic77")), Order.RELEVANCE),
    ("a word of nearly all", Filters(query=parse("answer")), Order.NEWEST),
    ("the same, ranked", Filters(query=parse("answer")), Order.RELEVANCE),
    ("two of them and one excluded", Filters(query=parse("answer the -copy1")), Order.RELEVANCE),
    ("a prefix", Filters(query=parse("copy99*")), Order.RELEVANCE),
    ("a phrase of nearly all", Filters(query=parse('"final answer is"')), Order.RELEVANCE),
    (
        "a phrase of frequent words, in none",
        Filters(query=parse('"is answer final"')),
        Order.RELEVANCE,
    ),
    ("CJK: two characters", Filters(query=parse("東京")), Order.RELEVANCE),
    ("CJK: four characters", Filters(query=parse("科学技術")), Order.RELEVANCE),
    (
        "words, adapter and status",
        Filters(query=parse("final answer"), adapter="lora-v1", statuses=(Status.FAILED,)),
        Order.RELEVANCE,
    ),
)


def _reads(database: Database, pages: int) -> list[Read]:
    """Read pages of each list: the first one, and those that begin at a random time."""
    rng = random.Random(1)
    now = dt.datetime.now(dt.UTC)
    reads = []
    for name, filters, order in LISTS:
        times, found = [], 0
        for number in range(pages + 1):
            until = now - dt.timedelta(days=rng.uniform(0, DAYS)) if number % 2 else None
            begun = time.perf_counter()
            read = searching.search(
                database, None, replace(filters, until=until), limit=LIMIT, order=order
            )
            json.dumps(page(read.jobs, filters.query))
            times.append(time.perf_counter() - begun)
            found += len(read.jobs)
        reads.append(_read(name, times[1:], found / (pages + 1)))
    return reads


def _histories(database: Database, ids: list[str], pages: int) -> Read:
    times = []
    for number in range(pages + 1):
        begun = time.perf_counter()
        job = queries.get_job(database, None, ids[number % len(ids)], with_history=True)
        json.dumps(history(job))
        times.append(time.perf_counter() - begun)
    return _read("one history", times[1:], 1)


#: Which statistics are read.
STATISTICS = (
    ("statistics of a day by hour", Query(by=By.HOUR)),
    ("of 30 days by day", Query(by=By.DAY)),
    ("of all, by model", Query(by=By.MODEL)),
    ("of an owner, by model", Query(by=By.MODEL, owner="owner-1")),
)


def _statistics(database: Database, pages: int) -> Iterator[Read]:
    for name, query in STATISTICS:
        times, jobs = [], 0
        for _ in range(pages + 1):
            begun = time.perf_counter()
            read = statistics_of_jobs.read(database, None, query)
            json.dumps(statistics_as_json(read))
            times.append(time.perf_counter() - begun)
            jobs = read.total.jobs
        yield _read(name, times[1:], jobs)


def _read(name: str, times: list[float], found: float) -> Read:
    late = sorted(times)[min(len(times) - 1, len(times) * 95 // 100)]
    return Read(name, statistics.median(times), late, found)


def _writes(database: Database, url: str, count: int) -> tuple[float, float, float]:
    """Write jobs at `RATE`, alternately without the index and with it.

    Returns:
        seconds of a job's writes without the index and with it, and of indexing a job.
    """
    times: dict[bool, list[float]] = {False: [], True: []}
    definition = "CREATE INDEX ix_jobs_unindexed ON jobs (finished_at) WHERE " + UNINDEXED
    with _indexing(url) as control:
        for number in range(0, 2 * count, ROUND):
            with_index = bool(number // ROUND % 2)
            control.working.clear()
            with database.write() as connection:
                if with_index:
                    connection.exec_driver_sql(definition)
                else:
                    connection.exec_driver_sql("DROP INDEX ix_jobs_unindexed")
            if with_index:
                control.working.set()
            for _ in _at_rate(ROUND):
                begun = time.perf_counter()
                _write(database, number)
                times[with_index].append(time.perf_counter() - begun)
        cost = control.cost.value / max(1, control.count.value)
    return statistics.mean(times[False]), statistics.mean(times[True]), cost


def _at_rate(count: int) -> Iterator[None]:
    """Yield so many times at `RATE`, however long it takes what is done in between."""
    start = time.perf_counter()
    for turn in range(count):
        time.sleep(max(0.0, start + turn / RATE - time.perf_counter()))  # Writers come at a rate.
        yield


def _write(database: Database, number: int) -> None:
    """Submit a job, and run its stages as a worker does."""
    new = NewJob("Why is it so?", "", Sampling(), 1, 5, background=True, metadata={"team": "new"})
    job, _ = submission.submit(database, ANONYMOUS, new, max_queued=1 << 30)
    text = f"The final answer is {number}. " * 10
    output = Output(text, [len(text)], 200, 100, "stop", 1024, 0.0)
    for stage_index in range(3):
        claimed = stages.claim(database, job.id, stage_index, "worker-v1", job_timeout=60)
        if claimed is None or not stages.record(database, claimed, output):
            raise ExpectedError(f"{job.id} was not recorded")


@dataclass
class _Control:
    """What this process and the one that indexes share."""

    working: Event
    stopped: Event
    #: Seconds, and jobs.
    cost: Synchronized[float]
    count: Synchronized[int]


@contextmanager
def _indexing(url: str) -> Iterator[_Control]:
    """Run the duty that indexes in another process, while its event is set."""
    context = multiprocessing.get_context("spawn")
    control = _Control(
        context.Event(), context.Event(), context.Value("d", 0.0), context.Value("i", 0)
    )
    arguments = (url, control.working, control.stopped, control.cost, control.count)
    process = context.Process(target=_index, args=arguments)
    process.start()
    try:
        yield control
    finally:
        control.stopped.set()
        control.working.set()
        process.join()


def _index(
    url: str,
    working: Event,
    stopped: Event,
    cost: Synchronized[float],
    count: Synchronized[int],
) -> None:
    database = Database(url)
    while not stopped.is_set():
        begun = time.process_time()
        prepared = indexing.prepare(database) if working.is_set() else []
        if prepared:
            count.value += indexing.put(database, prepared)
            indexing.merge(database)
            cost.value += time.process_time() - begun
        if len(prepared) < indexing.MAX_JOBS:
            database.checkpoint_wal()
            stopped.wait(INDEX_INTERVAL)
    database.close()


def _sizes(database: Database) -> tuple[int, int]:
    """Return the bytes of the database, and of what is only there for searches."""
    with database.read() as connection:
        if connection.dialect.name == "postgresql":
            row = connection.exec_driver_sql(
                "SELECT pg_database_size(current_database()), pg_total_relation_size('search_documents')"
            ).one()
            return int(row[0]), int(row[1])
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        size = connection.exec_driver_sql("PRAGMA page_size").scalar_one()
        own = connection.exec_driver_sql(
            "SELECT (SELECT sum(length(terms) + length(words) + 200) FROM search_documents) "
            "+ (SELECT sum(length(block)) FROM search_index_data)"
        ).scalar_one()
        return int(pages) * int(size), int(own)
