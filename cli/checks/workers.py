"""The workers."""

from __future__ import annotations

from cli.checks.findings import Findings, error, ok, warning
from cli.database import open_database
from jobs.settings import Settings
from jobs.use_cases import system


def check(settings: Settings) -> Findings:
    """Whether a worker is ready, with the model of the settings."""
    with open_database(settings) as db:
        described = system.describe(db)
    found = described.workers
    ready = [running.worker for running in found if running.state == "ready"]
    lost = [running.worker.id for running in found if running.state == "lost"]
    if not ready:
        if any(running.state == "loading" for running in found):
            yield warning("a worker loads its model: wait until it is ready")
        else:
            yield error("no worker is ready, so questions wait: start `helixq worker`")
    if lost:
        yield warning(f"{', '.join(lost)} sent no heartbeat for a while: look at its log")
    if len({worker.model for worker in ready}) > 1:
        yield warning(
            "the workers have several models, which take different jobs: give all of them the same settings"
        )
    for pause in described.pauses:
        if pause.resumed_at is None:
            yield warning(
                f"the queue has been paused since {pause.paused_at:%Y-%m-%d %H:%M} UTC by {pause.paused_by}, so no "
                "stage starts: resume it with `helixq resume`"
            )
    for worker in ready:
        base = worker.runtime.get("base", {}).get("name")
        if base not in (None, settings.base_model) and settings.engine != "openai":
            yield warning(
                f"{worker.id} serves {base}, and HELIXQ_BASE_MODEL here is {settings.base_model}: make them the same"
            )
        else:
            yield ok(f"{worker.id} is ready")
