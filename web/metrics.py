"""``/metrics``, for Prometheus: what the service does, from the database, and what this web does.

The database is read every few seconds at most, however many scrape. Names and units follow Prometheus's
conventions, and vLLM's words where it measures the same.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import redis
from flask import Blueprint, Flask, Response, current_app, request
from prometheus_client import CollectorRegistry, Counter, Histogram, make_wsgi_app
from prometheus_client.gc_collector import GCCollector
from prometheus_client.metrics_core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector
from sqlalchemy.exc import SQLAlchemyError
from werkzeug.wrappers import Response as BaseResponse

from jobs.models import AttemptStatus, Scope, Status
from jobs.pipeline import Role
from jobs.use_cases import metrics
from web.access import check_scope
from web.services import Services

blueprint = Blueprint("metrics", __name__)

#: Seconds for which what was read of the database and Redis is kept.
MAX_AGE = 5.0
#: Buckets in seconds: of requests, of stages and jobs, and of single tokens.
REQUEST_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
STAGE_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 60, 120, 300, 600, 1800, 3600)
TOKEN_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 1, 2.5, 5)
#: Methods that have a label of their own. Clients may send any word.
METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
#: In the environment of a request: when it began, on the clock of `time.perf_counter`.
BEGAN_AT = "helixq.began_at"


@blueprint.get("/metrics")
def get_metrics() -> BaseResponse:
    """Reply with metrics in the format that Prometheus asks for: its own, or OpenMetrics."""
    check_scope(Scope.AUDIT)
    serve: WSGIApplication = current_app.extensions["helixq.metrics"]
    # The library serves GET alone, and Flask takes the body off what HEAD asks for.
    environ = {**request.environ, "REQUEST_METHOD": "GET"}
    return current_app.response_class.from_app(serve, environ)


def init_app(app: Flask, services: Services) -> None:
    """Measure the requests of an application, and collect its service's metrics."""
    registry = CollectorRegistry()
    for collector in (ProcessCollector, PlatformCollector, GCCollector):
        collector(registry=registry)
    Requests(registry).init_app(app)
    registry.register(Service(services))
    app.extensions["helixq.metrics"] = make_wsgi_app(registry)


class Requests:
    """Counts the requests of an application, and measures how long their replies take to begin."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._total = Counter(
            "helixq_http_requests",
            "Requests that were replied to.",
            ("method", "route", "status"),
            registry=registry,
        )
        self._duration = Histogram(
            "helixq_http_request_duration_seconds",
            "Seconds from when a thread takes a request until its reply begins; that of a stream, too.",
            ("method", "route"),
            buckets=REQUEST_BUCKETS,
            registry=registry,
        )
        #: The series of each method, route and status: to find them by their labels takes longer than to count.
        self._series: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}

    def init_app(self, app: Flask) -> None:
        """Measure the requests of an application."""
        inner: WSGIApplication = app.wsgi_app

        def run(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            environ[BEGAN_AT] = time.perf_counter()
            return inner(environ, start_response)

        app.wsgi_app = run  # type: ignore[method-assign]  # Flask's way to add a middleware
        app.after_request(self._observe)

    def _observe(self, response: Response) -> Response:
        # The template of the route and not the path, which has ids.
        route = "none" if request.url_rule is None else request.url_rule.rule
        method = request.method if request.method in METHODS else "other"
        key = method, route, response.status_code
        series = self._series.get(key)
        if series is None:
            series = self._total.labels(*key), self._duration.labels(method, route)
            self._series[key] = series
        total, duration = series
        total.inc()
        # A malformed request has not begun: the server itself replies.
        if (began_at := request.environ.get(BEGAN_AT)) is not None:
            duration.observe(time.perf_counter() - began_at)
        return response


class Service(Collector):
    """Collects the metrics of a service: those of its database are the same for all its webs."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._lock = threading.Lock()
        self._read_at = -MAX_AGE
        self._waiting: metrics.Waiting | None = None
        self._is_up = {"database": False, "redis": False}
        self._ended = metrics.Ended()
        self._counts = _Counts()

    def describe(self) -> Iterable[Metric]:
        """Return no names: otherwise registering would read the database."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics, read again if what is kept is too old."""
        with self._lock:
            if time.monotonic() - self._read_at >= MAX_AGE:
                self._read()
                self._read_at = time.monotonic()
            yield from self._gauges()
            yield from self._counts.registry.collect()

    def _read(self) -> None:
        try:
            self._counts.add(*self._ended.read(self._services.database))
            self._waiting = metrics.measure(self._services.database)
        except SQLAlchemyError:
            self._waiting = None
        self._is_up["database"] = self._waiting is not None
        try:
            self._services.progress.ping()
            self._is_up["redis"] = True
        except redis.RedisError:
            self._is_up["redis"] = False

    def _gauges(self) -> Iterator[Metric]:
        about = {
            "version": version("helixq"),
            "database": self._services.database.engine.dialect.name,
        }
        yield InfoMetricFamily("helixq_build", "HelixQ's version and its database.", value=about)
        for server, is_up in self._is_up.items():
            name = {"database": "the database", "redis": "Redis"}[server]
            yield GaugeMetricFamily(
                f"helixq_{server}_up", f"Whether {name} responds (1) or not (0).", value=is_up
            )
        if (waiting := self._waiting) is None:
            return
        numbers: dict[str, tuple[str, float]] = {
            "jobs_queued": ("Jobs that wait for their first stage.", waiting.queued),
            "queue_paused": ("Whether the queue is paused (1) or not (0).", waiting.is_paused),
            "oldest_queued_job_age_seconds": (
                "Seconds that the oldest of them has waited.",
                waiting.oldest_queued_age,
            ),
            "webhook_deliveries_pending": ("Webhooks that are to be sent.", waiting.deliveries),
            "webhook_lag_seconds": (
                "Seconds for which the first of them has been due.",
                waiting.delivery_lag,
            ),
            "log_entries": ("Entries of the transparency log.", waiting.log_size),
            "log_unsealed_jobs": ("Ended jobs that have no entry in the log.", waiting.unsealed),
            "log_lag_seconds": ("Seconds since the first of them ended.", waiting.log_lag),
        }
        for name, (text, value) in numbers.items():
            yield GaugeMetricFamily(f"helixq_{name}", text, value=value)
        by_label = {
            "stages_running": (
                "Stages that workers run.",
                "role",
                {role.value: waiting.running.get(role, 0) for role in Role},
            ),
            "stages_waiting": (
                "Stages of jobs that have begun that wait for a worker.",
                "role",
                {role.value: waiting.waiting.get(role, 0) for role in Role},
            ),
            "workers": (
                "Workers that have not stopped. Heartbeats of lost ones have ceased.",
                "state",
                {state: waiting.workers.get(state, 0) for state in ("loading", "ready", "lost")},
            ),
        }
        for name, (text, label, values) in by_label.items():
            family = GaugeMetricFamily(f"helixq_{name}", text, labels=[label])
            for each, number in values.items():
                family.add_metric([each], number)
            yield family


class _Counts:
    """Counters and histograms of what has ended since they were first read."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"helixq_{name}", text, labels, registry=registry)

        def histogram(
            name: str, text: str, *labels: str, buckets: tuple[float, ...] = STAGE_BUCKETS
        ) -> Histogram:
            return Histogram(
                f"helixq_{name}_seconds", text, labels, buckets=buckets, registry=registry
            )

        self._jobs = counter("jobs", "Jobs that ended, by how.", "status")
        self._attempts = counter(
            "attempts", "Attempts at stages that ended, by how.", "role", "status"
        )
        self._rescues = counter(
            "rescues", "Stages whose leases were taken back from a lost worker.", "role"
        )
        self._prompt = counter("prompt_tokens", "Tokens of prompts of ended attempts.", "role")
        self._generated = counter("generation_tokens", "Tokens that they generated.", "role")
        self._job_time = histogram(
            "job_duration", "Seconds from accepting a job until it is answered."
        )
        self._queue_time = histogram(
            "stage_queue_time", "Seconds that a stage that ended waited for a worker.", "role"
        )
        self._stage_time = histogram(
            "stage_duration", "Seconds that a finished stage ran, without waiting.", "role"
        )
        self._first_token = histogram(
            "time_to_first_token",
            "Seconds from when a stage was ready, waiting included, to its first token.",
            "role",
        )
        self._token_time = histogram(
            "time_per_output_token",
            "Seconds per token of a finished stage, after its first token.",
            "role",
            buckets=TOKEN_BUCKETS,
        )
        # All series are there from the start, so that their first increase is seen.
        for status in (each for each in Status if each.final):
            self._jobs.labels(status.value)
        for role in (each.value for each in Role):
            for ended in set(AttemptStatus) - {AttemptStatus.RUNNING}:
                self._attempts.labels(role, ended.value)
            for metric in (self._rescues, self._prompt, self._generated):
                metric.labels(role)
            for timed in (self._queue_time, self._stage_time, self._first_token, self._token_time):
                timed.labels(role)

    def add(self, jobs: Iterable[Any], attempts: Iterable[Any]) -> None:
        """Count rows of `metrics.Ended.read`."""
        for job in jobs:
            self._jobs.labels(job.status.value).inc()
            if job.status in (Status.COMPLETED, Status.INCOMPLETE):
                self._job_time.observe(_seconds(job.created_at, job.finished_at))
        for attempt in attempts:
            self._add_attempt(attempt)

    def _add_attempt(self, attempt: Any) -> None:
        role = attempt.role.value
        self._attempts.labels(role, attempt.status.value).inc()
        if attempt.status is AttemptStatus.LOST:
            self._rescues.labels(role).inc()
        self._prompt.labels(role).inc(attempt.prompt_tokens or 0)
        self._generated.labels(role).inc(attempt.output_tokens or 0)
        self._queue_time.labels(role).observe(_seconds(attempt.queued_at, attempt.started_at))
        first = attempt.first_token_at
        if first is not None:
            self._first_token.labels(role).observe(_seconds(attempt.queued_at, first))
        if attempt.status is not AttemptStatus.FINISHED:
            return
        self._stage_time.labels(role).observe(_seconds(attempt.started_at, attempt.finished_at))
        if first is not None and (attempt.output_tokens or 0) > 1:
            seconds = _seconds(first, attempt.finished_at) / (attempt.output_tokens - 1)
            self._token_time.labels(role).observe(seconds)


def _seconds(start: Any, end: Any) -> float:
    return max(0.0, float((end - start).total_seconds()))
