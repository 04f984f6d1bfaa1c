"""A soak in short: a loaded service keeps no threads, files or connections, and a leak is found."""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from cli.bench import measure_soak
from cli.bench.clients import Clients
from cli.bench.measure_soak import Parts
from cli.main import main
from jobs.database_engine import MAX_CONNECTIONS
from tests import servers
from tests.acceptance.conftest import Service, on_either_database
from tests.servers import PATIENCE

SLOTS = 4
LEAKING = (sys.executable, "-m", "tests.acceptance.leaking")
#: Jobs at once, and in all, of the first load; and of the second one.
FIRST, SECOND = (24, 24), (24, 72)
#: By how many a count may rise: pools of connections may open their last ones late. A leak for each job is more.
LATE = MAX_CONNECTIONS


service = on_either_database(HELIXQ_SLOTS=str(SLOTS))


def parts(service: Service) -> Parts:
    pids = {
        "web": service.web.popen.pid,
        "worker": service.worker.popen.pid,
        "Redis": service.redis.process.popen.pid,
    }
    environ = service.environ
    database, redis = environ["HELIXQ_DATABASE_URL"], environ["HELIXQ_REDIS_URL"]
    return Parts(service.url, pids, database, redis)


def counts(watch: measure_soak.Watch) -> dict[str, float]:
    """Return everything that is counted now: threads, files, connections and keys."""
    return {
        f"{part}: {what}": value for (part, what, unit), value in watch.values().items() if not unit
    }


async def ask(url: str, at_once: int, jobs: int) -> None:
    bodies = ({"input": f"Question {i}", "max_output_tokens": 1} for i in itertools.count())
    async with Clients(url, bodies) as clients:
        await clients.keep_busy(at_once, jobs)


def test_a_loaded_service_keeps_no_threads_files_or_connections(service: Service) -> None:
    with measure_soak.Watch(parts(service)) as watch:
        asyncio.run(ask(service.url, *FIRST))
        before = counts(watch)
        asyncio.run(ask(service.url, *SECOND))
        deadline = time.monotonic() + PATIENCE
        while grown := {
            what: (before[what], value)
            for what, value in counts(watch).items()
            if value > before[what] + LATE
        }:
            assert time.monotonic() < deadline, grown
            time.sleep(0.05)  # The last connections are closed a little after their replies.


@pytest.mark.parametrize("service", ["sqlite"], indirect=True, scope="module")
def test_a_leak_is_found(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fault: each reply of the web leaves a file open."""
    service.web.stop()
    service.web = servers.web(service.environ, LEAKING)
    service.web.wait_for("listening")

    @contextmanager
    def started(_folder: Path, slots: int, database_url: str | None) -> Iterator[Parts]:
        assert (slots, database_url) == (SLOTS, None)
        yield parts(service)

    monkeypatch.setattr(measure_soak, "service", started)
    options = ["--slots", str(SLOTS), "--max-output-tokens", "1", "--json"]
    for minutes in (0.1, 1.0):
        result = CliRunner().invoke(main, ["bench", "soak", "--minutes", str(minutes), *options])
        # A busy machine does less.
        if "too few to say what grows" not in result.output:
            break
    assert result.exit_code == 1, result.output
    assert result.stdout, result.output
    soak = json.loads(result.stdout)["soak"]
    low, high = min(soak["speeds"]), max(soak["speeds"])
    assert 0.5 * low < soak["rate"] / (0.8 * soak["capacity"]) < 2 * high
    assert soak["jobs"] == pytest.approx(soak["rate"] * minutes * 60)
    grown = {(g["part"], g["what"]): g for g in soak["growths"] if g["grows"]}
    leak = grown["web", "open files"]
    assert leak["per_job"] > 1, "a question and its polls each leave one open"
    assert ("worker", "open files") not in grown
    for delays in soak["delays"]:
        assert all(0 < m <= late for m, late in zip(delays["medians"], delays["late"], strict=True))
    assert soak["stored_per_job"] > 0
