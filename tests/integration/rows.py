"""Jobs, claims and outputs for tests of the database."""

from __future__ import annotations

from dataclasses import replace

import sqlalchemy as sa

from jobs.database import Database
from jobs.database_clock import utcnow
from jobs.models import ANONYMOUS, Job
from jobs.pipeline import Sampling
from jobs.use_cases import stages, submission
from jobs.use_cases.stages import Claim, Output
from jobs.use_cases.submission import NewJob
from tests.conftest import WORKER

QUESTION = NewJob(
    question="Why?",
    system="Be brief.",
    sampling=Sampling(seed=7),
    rounds=1,
    priority=5,
    background=True,
    metadata={"team": "blue"},
)
OUTPUT = Output(
    text="Because.",
    delta_lengths=[4, 4],
    prompt_tokens=12,
    output_tokens=3,
    finish_reason="stop",
    max_output_tokens=1024,
    first_token_after=0.0,
)


def submit(database: Database, **changes: object) -> Job:
    new = replace(QUESTION, **changes)  # type: ignore[arg-type]  # any field
    job, created = submission.submit(database, ANONYMOUS, new, max_queued=1_000_000)
    assert created
    return job


def claim(
    database: Database,
    job: Job,
    stage_index: int = 0,
    worker: str = WORKER,
    *,
    exclusive: bool = False,
) -> Claim:
    claimed = stages.claim(
        database, job.id, stage_index, worker, job_timeout=60, exclusive=exclusive
    )
    assert claimed is not None
    return claimed


def let_leases_run_out(database: Database) -> None:
    """Move the leases' times back, so that they expire now."""
    with database.engine.begin() as connection:
        leased = sa.update(Job).where(Job.worker_id.is_not(None))
        connection.execute(leased.values(lease_expires_at=utcnow(-1)))
