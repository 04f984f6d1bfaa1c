"""Restarting jobs whose model no worker has any more: one job, one model."""

from __future__ import annotations

import datetime as dt

import sqlalchemy as sa

from jobs.database import Database
from jobs.statements import leases, restarts, workers

#: The maximum number of jobs that one call restarts.
LIMIT = 1000


def restart_jobs(database: Database, timeout: float) -> list[str]:
    """Restart the jobs whose model no worker has had lately, if a worker with another model is ready.

    A job keeps its seed, its deadline and its attempts. Its next run gets the model of the worker that
    claims its first stage.

    Args:
        database: of the jobs.
        timeout: seconds that a stage waits for a worker with the job's model.

    Returns:
        the jobs' ids.
    """
    # As a rule there is nothing to do, which should lock nothing.
    with database.read() as connection:
        gone = _gone_models(connection, timeout)
    if not gone:
        return []
    reason = f"no worker with the model of the run before was ready for {timeout:g} seconds"
    restarted = []
    with database.write() as connection:
        for job in restarts.find_waiting(connection, timeout, gone, LIMIT):
            now: dt.datetime = job.now
            entry = {
                "run": job.run + 1,
                "at": now.isoformat(),
                "model": job.model,
                "reason": reason,
            }
            if leases.restart(connection, job, [*job.restarts, entry]):
                restarted.append(job.id)
    return restarted


def _gone_models(connection: sa.Connection, timeout: float) -> list[str]:
    """Return the models that jobs wait for and no worker has had lately; none if no worker is ready."""
    waiting = restarts.waiting_models(connection, timeout)
    if not waiting:
        return []
    ready = workers.ready_models(connection)
    if not ready:
        return []
    present = ready | workers.models_seen_within(connection, timeout)
    return sorted(waiting - present)
