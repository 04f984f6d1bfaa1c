"""The threads of the background duties, which every worker and `helixq maintain` run."""

from __future__ import annotations

from typing import Protocol

from celery import Celery

from jobs.database import Database
from jobs.maintenance import Maintenance
from jobs.progress import Progress
from jobs.queue import Publisher
from jobs.settings import Settings
from jobs.sweeper import Sweeper
from jobs.trace_sending import TraceSending
from jobs.use_cases.log_signing import Signing
from jobs.webhook_delivery import WebhookSending
from jobs.witnessing import Witnessing


class BackgroundThread(Protocol):
    """A thread that is started once and stopped once; see `jobs.duties.DutyThread`."""

    def start(self) -> None: ...
    def stop(self, timeout: float | None = None) -> bool: ...


def make_threads(
    settings: Settings, database: Database, progress: Progress, app: Celery, model: str | None
) -> list[BackgroundThread]:
    """Return the threads in the order in which to start them.

    Args:
        settings: of the process.
        database: of the jobs.
        progress: gets the changes of jobs.
        app: publishes stages.
        model: of the jobs that have begun and are to be published; None for the models of all workers that are ready.
    """
    publisher = Publisher(app)
    sweeper = Sweeper(
        database, publisher, progress, model=model, model_timeout=settings.model_timeout
    )
    maintenance = Maintenance(
        database,
        publisher,
        progress,
        retention_days=settings.retention_days,
        signing=Signing.of(settings.log_key, settings.log_origin, settings.data_dir),
    )
    return [
        sweeper,
        maintenance,
        WebhookSending(database, settings.webhook_allowed_networks),
        Witnessing(database, settings.log_witnesses),
        TraceSending(database, settings.otlp_endpoint),
    ]
