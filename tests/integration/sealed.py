"""Sealed jobs for tests of the log."""

from __future__ import annotations

from jobs.database import Database
from jobs.models import Job
from jobs.protocol.history import history
from jobs.use_cases import sealing, stages
from jobs.use_cases.log_signing import Signing
from tests.integration.rows import OUTPUT, claim, submit


def seal(database: Database, signing: Signing = Signing()) -> int:  # noqa: B008 (it never changes)
    """Seal what has ended, as the duty does; return the number of entries."""
    return sealing.append(database, sealing.prepare(database, history), signing)


def end(database: Database, **changes: object) -> Job:
    """Run a job to its end."""
    job = submit(database, **changes)
    for stage_index in range(3):
        assert stages.record(database, claim(database, job, stage_index), OUTPUT)
    return job
