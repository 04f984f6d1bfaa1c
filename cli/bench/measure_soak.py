"""Measures whether a service under steady load grows: its memory, threads, files, connections and delays."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import redis
import sqlalchemy as sa

from cli.bench import processes, resources
from cli.bench.clients import Clients
from cli.bench.common import demo_questions
from cli.bench.pace import Pace
from cli.bench.trends import BLOCKS, Trend, quantile, trend
from cli.errors import ExpectedError
from jobs.database import Database
from jobs.database_url import checked
from jobs.models import Job
from jobs.settings import Settings

#: Maximum seconds for the service to start.
TIMEOUT = 600.0
#: Seconds between two samples, unless the soak is short.
INTERVAL = 2.0
#: While the capacity is measured: jobs that are in the service for each slot, and how many each of these is in all.
BUSY, ROUNDS = 1.5, 5
#: By how much something may rise during the second half without counting as growth: bytes, a number of things,
#: and a share of a delay. An allocator's steps and a neighbour on the same machine do that.
ALLOWED_BYTES = 1 << 20
ALLOWED_COUNT = 1.0
ALLOWED_DELAY = 0.5
#: The minimum number of jobs: one for each block of the second half.
MIN_JOBS = 2 * BLOCKS


@dataclass(frozen=True)
class Parts:
    """A service that runs."""

    url: str
    #: The process ids of its parts by their names.
    pids: dict[str, int]
    #: As `jobs.database_url.checked` returns it.
    database_url: str
    redis_url: str


@dataclass(frozen=True)
class Growth:
    """What became of one thing in the second half of the soak."""

    part: str
    what: str
    #: ``bytes``, ``seconds``, or nothing for a number.
    unit: str
    trend: Trend
    #: The rise for each job asked.
    per_job: float
    grows: bool


@dataclass(frozen=True)
class Delays:
    """Seconds of one kind, by thirds of the soak: the median, and what 99 of 100 do not exceed."""

    what: str
    medians: list[float]
    late: list[float]


@dataclass(frozen=True)
class Soak:
    """The measurement of one soak."""

    #: Jobs a second that the service completed when it was full, and that were asked for then, on average.
    capacity: float
    rate: float
    #: How fast the machine was by thirds of the soak, while the capacity was measured 1.
    speeds: list[float]
    minutes: float
    jobs: int
    growths: list[Growth]
    delays: list[Delays]
    #: Milliseconds of each part's processor time for a job.
    processor: dict[str, float]
    #: Bytes by which the database grew for each job. It keeps their histories.
    stored_per_job: float

    @property
    def grown(self) -> list[Growth]:
        return [growth for growth in self.growths if growth.grows]


@contextmanager
def service(folder: Path, slots: int, database_url: str | None) -> Iterator[Parts]:
    """Run `helixq up` on the demo's model and `helixq maintain` beside it, with their data in an empty folder."""
    settings = Settings(data_dir=folder / "data", port=processes.free_port())
    url = settings.database if database_url is None else checked(database_url)
    environ = {"HELIXQ_SLOTS": str(slots), "HELIXQ_DATABASE_URL": url}
    # Those that fall behind should be seen in the delays, and not be refused.
    environ["HELIXQ_MAX_QUEUED"] = "100000"
    beside = {"HELIXQ_DATABASE_URL": url, "HELIXQ_REDIS_URL": settings.redis}
    with (
        processes.run("up", settings, environ, path="/readyz", timeout=TIMEOUT) as up,
        processes.run("maintain", settings, beside, path=None, timeout=TIMEOUT) as maintain,
    ):
        words = {"web": "web", "worker": "worker", "Redis": "redis-server"}
        pids = {name: resources.child(up, word) for name, word in words.items()}
        yield Parts(settings.url, {**pids, "maintain": maintain}, url, settings.redis)


def run(
    parts: Parts,
    *,
    slots: int,
    share: float,
    minutes: float,
    max_output_tokens: int,
    seed: int,
    on_progress: Callable[[str], object] = lambda _: None,
) -> Soak:
    """Find the capacity of a service, and ask at a share of it. The capacity is taken to follow the machine's speed.

    Args:
        parts: of the service.
        slots: of its worker.
        share: of the capacity.
        minutes: how long to ask, after the capacity was measured.
        max_output_tokens: of every stage.
        seed: of the first job; each following job's is larger by one.
        on_progress: called with a description of the next step.

    Raises:
        ExpectedError: a part ends, a job does not complete, or there were too few jobs.
    """
    resources.check_system()
    with Watch(parts) as watch:
        bodies = (
            {"input": question, "max_output_tokens": max_output_tokens, "seed": number}
            for number, question in enumerate(itertools.cycle(demo_questions(1000)), seed)
        )
        soaking = _soak(parts, watch, bodies, slots, share, minutes * 60, on_progress)
        return asyncio.run(soaking)


async def _soak(
    parts: Parts,
    watch: Watch,
    bodies: Iterator[dict[str, Any]],
    slots: int,
    share: float,
    seconds: float,
    on_progress: Callable[[str], object],
) -> Soak:
    async with Clients(parts.url, bodies) as clients:
        at_once = round(BUSY * slots)
        pace = Pace()
        sampling = asyncio.create_task(pace.keep_sampling())
        on_progress(f"measuring the capacity with {ROUNDS * at_once} jobs")
        await clients.keep_busy(at_once, ROUNDS * at_once)
        capacity = watch.completed_a_second(clients.ids)
        pace.calibrate()
        before, stored = len(clients.ids), watch.stored()
        clients.questions.clear()
        clients.polls.clear()
        on_progress(
            f"asking {share * capacity:.2f} questions a second ({share:.0%} of {capacity:.2f}) for "
            f"{seconds / 60:g} minutes, less when the machine is slower"
        )
        used = watch.processor()
        watching = asyncio.create_task(watch.keep_watching(min(INTERVAL, seconds / 100), seconds))
        await clients.ask_evenly(lambda: share * capacity * pace.speed(), seconds)
        await watching
        sampling.cancel()
        ids = clients.ids[before:]
        if len(ids) < MIN_JOBS:
            raise ExpectedError(
                f"{len(ids)} jobs in {seconds / 60:g} minutes are too few to say what grows: set --minutes higher"
            )
        rate = len(ids) / seconds
        growths = watch.growths(rate)
        kinds = {
            "a whole job": watch.durations(ids),
            "a reply to a question": sorted(clients.questions),
            "a reply to a poll": sorted(clients.polls),
        }
        for what, series in kinds.items():
            growths += _delay_growths(what, second_half(series), rate)
        return Soak(
            capacity=capacity,
            rate=rate,
            speeds=pace.by_thirds(),
            minutes=seconds / 60,
            jobs=len(ids),
            growths=growths,
            delays=[_by_thirds(what, series) for what, series in kinds.items()],
            processor={
                name: (now - used[name]) / len(ids) * 1000
                for name, now in watch.processor().items()
            },
            stored_per_job=(watch.stored() - stored) / len(ids),
        )


class Watch:
    """Watches the parts of a service, and reads what its database says of the jobs."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._series: dict[tuple[str, str, str], list[tuple[float, float]]] = defaultdict(list)

    def __enter__(self) -> Self:
        self._database = Database(self._parts.database_url)
        self._redis = redis.Redis.from_url(self._parts.redis_url)
        url = self._database.engine.url
        self._file = Path(url.database or "").resolve() if self._is_sqlite else None
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()
        self._redis.close()

    @property
    def _is_sqlite(self) -> bool:
        return self._database.engine.dialect.name == "sqlite"

    async def keep_watching(self, interval: float, seconds: float) -> None:
        """Sample at intervals, for a number of seconds."""
        start = time.monotonic()
        for number in range(round(seconds / interval)):
            await asyncio.sleep(max(0.0, start + number * interval - time.monotonic()))
            self.sample()

    def sample(self) -> None:
        """Add what everything uses now to the series.

        Raises:
            ExpectedError: a part has ended.
        """
        now = time.monotonic()
        for what, value in self.values().items():
            self._series[what].append((now, value))

    def values(self) -> dict[tuple[str, str, str], float]:
        """Return what everything uses now, by part, name and unit.

        Raises:
            ExpectedError: a part has ended.
        """
        values: dict[tuple[str, str, str], float] = {}
        for part, pid in self._parts.pids.items():
            try:
                usage = resources.usage(pid)
                connections = resources.opened(pid, self._file) if self._file else None
            except OSError as error:
                raise ExpectedError(f"the part {part} has ended") from error
            values[part, "memory", "bytes"] = usage.memory
            values[part, "anonymous memory", "bytes"] = usage.anonymous
            values[part, "threads", ""] = usage.threads
            values[part, "open files", ""] = usage.files
            if connections is not None and part != "Redis":
                values[part, "connections to the database", ""] = connections
        if not self._is_sqlite:
            values["PostgreSQL", "connections", ""] = self._ask(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            )
        info: Any = self._redis.info()
        keys = info.get("db0", {"keys": 0, "expires": 0})
        values["Redis", "connections", ""] = info["connected_clients"]
        values["Redis", "data", "bytes"] = info["used_memory_dataset"]
        values["Redis", "keys that do not expire", ""] = keys["keys"] - keys["expires"]
        return values

    def growths(self, rate: float) -> list[Growth]:
        """Return what became of everything in the second half."""
        growths = []
        for (part, what, unit), series in self._series.items():
            later = second_half(series)
            line = trend(later)
            jobs = rate * (later[-1][0] - later[0][0])
            # Redis keeps a job's live text for a minute after its end, and grows in a short run: its lasting keys tell.
            judged = unit != "bytes" or part != "Redis"
            grows = judged and line.grows(ALLOWED_BYTES if unit == "bytes" else ALLOWED_COUNT)
            growths.append(Growth(part, what, unit, line, line.rise / jobs, grows))
        return growths

    def completed_a_second(self, ids: list[str]) -> float:
        """Return how many jobs were completed each second, of those in the middle: half of them."""
        ends = sorted(created + duration for created, duration in self.durations(ids))
        first, last = len(ends) // 4, len(ends) * 3 // 4
        return (last - first) / (ends[last] - ends[first])

    def durations(self, ids: list[str]) -> list[tuple[float, float]]:
        """Return for each completed job when it was stored, and the seconds until it was answered."""
        wanted = set(ids)
        with self._database.read() as connection:
            rows = connection.execute(
                sa.select(Job.id, Job.created_at, Job.finished_at)
                .where(Job.status.in_(("completed", "incomplete")))
                .order_by(Job.created_at)
            ).all()
        return [
            (created.timestamp(), (finished - created).total_seconds())
            for job_id, created, finished in rows
            if finished and job_id in wanted
        ]

    def processor(self) -> dict[str, float]:
        """Return the processor time that each part has used, in seconds."""
        return {part: resources.processor(pid) for part, pid in self._parts.pids.items()}

    def stored(self) -> float:
        """Return the size of the database in bytes."""
        if self._file is None:
            return self._ask("SELECT pg_database_size(current_database())")
        size = 0
        for suffix in ("", "-wal"):
            with suppress(FileNotFoundError):
                size += Path(f"{self._file}{suffix}").stat().st_size
        return size

    def _ask(self, query: str) -> float:
        with self._database.read() as connection:
            return float(connection.exec_driver_sql(query).scalar_one())


def second_half(series: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the values of the second half of the time."""
    middle = (series[0][0] + series[-1][0]) / 2
    return [(at, value) for at, value in series if at >= middle]


def _delay_growths(what: str, series: list[tuple[float, float]], rate: float) -> list[Growth]:
    jobs = rate * (series[-1][0] - series[0][0])
    growths = []
    for name, share in (("median", 0.5), ("99 of 100 within", 0.99)):
        line = trend(series, partial(quantile, share=share))
        grows = line.grows(ALLOWED_DELAY * line.level)
        growths.append(Growth(what, name, "seconds", line, line.rise / jobs, grows))
    return growths


def _by_thirds(what: str, series: list[tuple[float, float]]) -> Delays:
    start, width = series[0][0], (series[-1][0] - series[0][0]) / 3
    thirds: list[list[float]] = [[], [], []]
    for at, value in series:
        thirds[min(int((at - start) / width), 2)].append(value)
    medians = [quantile(third, 0.5) for third in thirds]
    return Delays(what, medians, [quantile(third, 0.99) for third in thirds])
