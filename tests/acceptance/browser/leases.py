"""Leases of stages that a test claims itself, in the place of a worker."""

from __future__ import annotations

import sqlalchemy as sa

from jobs.database import Database
from jobs.database_clock import utcnow
from jobs.models import Job


def hold(database: Database, job_id: str) -> None:
    """Keep the sweep of the real worker from taking a stage back, however long the test takes."""
    _set_lease(database, job_id, 3600)


def let_run_out(database: Database, job_id: str) -> None:
    """Let the sweep take the stage back."""
    _set_lease(database, job_id, -1)


def _set_lease(database: Database, job_id: str, seconds: float) -> None:
    with database.write() as connection:
        connection.execute(
            sa.update(Job).where(Job.id == job_id).values(lease_expires_at=utcnow(seconds))
        )
