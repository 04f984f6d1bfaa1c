"""A worker's metrics, for Prometheus: at a port of their own, if `HELIXQ_METRICS_PORT` is given.

A scrape reads counters that the engine and the stage runner keep anyway. Names and units follow Prometheus's
conventions, and vLLM's names where it measures the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib.metadata import version

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.gc_collector import GCCollector
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from jobs.errors import UserError
from jobs.pipeline import Role
from jobs.settings import Settings
from jobs.use_cases.workers import Runtime
from worker.engine.interface import Engine, EngineStats, FinishReason, MeasuredEngine
from worker.stage_runner import StageRunner

#: What an engine may measure: the field of `EngineStats`, the metric's name, and what it says.
GAUGES = {
    "num_running": ("num_requests_running", "Requests that are decoded together."),
    "num_waiting": ("num_requests_waiting", "Requests that wait in the engine."),
    "num_kv_blocks": (
        "kv_cache_blocks",
        "Blocks of the KV cache: pages, or rows for one request each.",
    ),
    "num_used_kv_blocks": ("kv_cache_blocks_used", "Blocks that running requests have."),
    "gpu_memory": ("gpu_memory_bytes", "Memory of the CUDA device."),
    "gpu_memory_used": ("gpu_memory_used_bytes", "Memory of it that all processes use."),
}
COUNTERS = {
    "num_steps": ("steps", "Steps of the engine."),
    "step_seconds": ("step_seconds", "Seconds that they took, scheduling included."),
    "num_computed_tokens": ("tokens", "Tokens that they computed, of prompts and outputs."),
    "num_preemptions": ("num_preemptions", "Requests evicted from the KV cache, to be recomputed."),
}


class AddressError(UserError):
    """Metrics cannot be served at the address of the settings."""


class MetricsServer:
    """Serves a worker's metrics on threads of its own. Does nothing if the settings have no port for it."""

    def __init__(self, settings: Settings) -> None:
        """Start to serve the process's own metrics: memory, open files, processor time.

        Raises:
            AddressError: the address is in use or does not belong to this machine.
        """
        self._registry = CollectorRegistry()
        self._server = None
        if settings.metrics_port is None:
            return
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self._registry)
        try:
            self._server, self._thread = start_http_server(
                settings.metrics_port, settings.host, self._registry
            )
        except OSError as error:
            raise AddressError(
                f"metrics cannot be served at {settings.host}:{settings.metrics_port} "
                f"({error.strerror}): check HELIXQ_HOST and HELIXQ_METRICS_PORT"
            ) from error

    def watch(self, engine: Engine, runner: StageRunner, worker_id: str, runtime: Runtime) -> None:
        """Serve the metrics of an engine and of the stages that it runs, too."""
        if self._server is not None:
            self._registry.register(WorkerCollector(engine, runner, worker_id, runtime))

    def close(self) -> None:
        """Stop."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()


class WorkerCollector(Collector):
    """Collects the metrics of a worker and its engine."""

    def __init__(
        self, engine: Engine, runner: StageRunner, worker_id: str, runtime: Runtime
    ) -> None:
        self._engine = engine
        self._runner = runner
        self._about = {
            "version": version("helixq"),
            "worker": worker_id,
            "engine": engine.name,
            "model": runtime.model,
        }

    def describe(self) -> Iterable[Metric]:
        """Return no names: registering does not read."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        yield InfoMetricFamily("helixq_worker", "The worker, its engine and model.", self._about)
        yield GaugeMetricFamily(
            "helixq_worker_slots",
            "Stages that it runs at the same time at most.",
            self._engine.max_num_seqs,
        )
        yield GaugeMetricFamily(
            "helixq_worker_stages_running", "Stages that it runs.", len(self._runner.running)
        )
        yield self._attempts()
        if isinstance(self._engine, MeasuredEngine):
            yield from _of_engine(self._engine.stats())

    def _attempts(self) -> Metric:
        family = CounterMetricFamily(
            "helixq_worker_attempts",
            "Attempts that ended on it, by why.",
            labels=["role", "reason"],
        )
        # Those that every worker sees are there from the start, so that their first increase is seen.
        usual = (
            (role, reason)
            for role in Role
            for reason in (FinishReason.STOP, FinishReason.STOP_STRING, FinishReason.LENGTH)
        )
        counts: dict[tuple[Role, str], int] = {**dict.fromkeys(usual, 0), **self._runner.ended}
        for (role, reason), number in sorted(counts.items()):
            family.add_metric([str(role), str(reason)], number)
        return family


def _of_engine(stats: EngineStats) -> Iterator[Metric]:
    kinds = ((GAUGES, GaugeMetricFamily), (COUNTERS, CounterMetricFamily))
    for names, family in kinds:
        for field, (name, text) in names.items():
            value = getattr(stats, field)
            if value is not None:
                yield family(f"helixq_engine_{name}", text, value)
