"""What a Prometheus reads of a worker, with a real engine."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from celery.exceptions import Ignore
from prometheus_client.parser import text_string_to_metric_families

from jobs import settings
from jobs.database import Database
from jobs.pipeline import Sampling
from jobs.use_cases import cancellation
from tests.conftest import RUNTIME, WORKER
from tests.integration.rows import submit
from tests.servers import PATIENCE, free_port
from worker.engine.batching.engine import BatchingEngine
from worker.engine.interface import EngineStats
from worker.engine.reference import ReferenceEngine
from worker.metrics import AddressError, MetricsServer
from worker.progress_publisher import ProgressPublisher
from worker.stage_runner import StageRunner


class Served:
    """A server of metrics."""

    def __init__(self) -> None:
        port = free_port()
        self.settings = settings.load({"HELIXQ_METRICS_PORT": str(port)})
        self.server = MetricsServer(self.settings)
        self.url = f"http://127.0.0.1:{port}/metrics"

    def scrape(self) -> dict[tuple[str, ...], float]:
        """Return the samples by their names and the values of their labels."""
        with urllib.request.urlopen(self.url, timeout=PATIENCE) as reply:  # noqa: S310 (it is HTTP)
            text = reply.read().decode()
        return {
            (sample.name.removeprefix("helixq_"), *sample.labels.values()): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }


@pytest.fixture
def served() -> Iterator[Served]:
    served = Served()
    yield served
    served.server.close()


def test_a_worker_says_what_it_does(
    database: Database, engine: BatchingEngine, publisher: ProgressPublisher, served: Served
) -> None:
    assert not any(name.startswith("engine") for name, *_ in served.scrape())
    assert served.scrape()["process_resident_memory_bytes",] > 0, "also while the model loads"
    runner = StageRunner(database, engine, publisher, WORKER, job_timeout=60)
    served.server.watch(engine, runner, WORKER, RUNTIME)
    before = served.scrape()
    assert before["worker_slots",] == engine.max_num_seqs
    assert before["worker_stages_running",] == 0
    assert before["worker_attempts_total", "length", "actor"] == 0
    assert before["engine_kv_cache_blocks_used",] == 0
    assert ("engine_gpu_memory_bytes",) not in before, "there is no CUDA device"

    during: list[dict[tuple[str, ...], float]] = []
    step: Any = engine._runner
    launch = step.launch

    def launching(plan: Any) -> Any:
        if not during:
            during.append(served.scrape())
        return launch(plan)

    step.launch = launching
    job = submit(database, sampling=Sampling(max_output_tokens=5, temperature=0))
    runner.run(job.id, 0)
    step.launch = launch
    [now] = during
    assert (now["engine_num_requests_running",], now["engine_num_requests_waiting",]) == (1, 0)
    assert 0 < now["engine_kv_cache_blocks_used",] < now["engine_kv_cache_blocks",]
    assert now["worker_stages_running",] == 1

    cancelled = submit(database)
    runner.stop()  # What runs from now on goes back.
    with pytest.raises(Ignore):
        runner.run(cancelled.id, 0)
    after = served.scrape()
    ended = {key: value for key, value in after.items() if key[0] == "worker_attempts_total"}
    assert sum(ended.values()) == 1
    assert after["engine_num_requests_running",] == after["engine_kv_cache_blocks_used",] == 0
    for counter in ("steps", "step_seconds", "tokens"):
        name = f"engine_{counter}_total"
        assert after[name,] > before[name,], name
    assert after["engine_num_preemptions_total",] >= before["engine_num_preemptions_total",]
    assert after["engine_step_seconds_total",] - before["engine_step_seconds_total",] < 60


def test_attempts_by_reason(
    database: Database, reference: ReferenceEngine, publisher: ProgressPublisher
) -> None:
    runner = StageRunner(database, reference, publisher, WORKER, job_timeout=60)
    full = submit(database, question="word " * 50_000)
    with pytest.raises(Ignore):
        runner.run(full.id, 0)
    cancelled = submit(database, sampling=Sampling(max_output_tokens=1))
    submit_to_engine = reference.submit

    def cancel_meanwhile(request: Any) -> Any:
        cancellation.cancel(database, cancelled.owner, cancelled.id)
        return submit_to_engine(request)

    reference.submit = cancel_meanwhile  # type: ignore[method-assign]  # on purpose
    with pytest.raises(Ignore):
        runner.run(cancelled.id, 0)
    del reference.submit
    assert {reason: number for (_, reason), number in runner.ended.items()} == {
        "context_length_exceeded": 1,
        "lease_lost": 1,
    }
    assert reference.stats() == EngineStats(num_running=0, num_waiting=0)


def test_an_address_that_is_taken_is_named(served: Served) -> None:
    with pytest.raises(AddressError, match=r"127\.0\.0\.1:\d+ .*check HELIXQ_HOST and HELIXQ_MET"):
        MetricsServer(served.settings)


def test_nothing_is_served_without_a_port() -> None:
    server = MetricsServer(settings.load({}))
    server.close()
    assert server._server is None
