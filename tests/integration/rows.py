"""Jobs, claims and outputs for tests of the store."""

from __future__ import annotations

from dataclasses import replace

import sqlalchemy as sa

from jobs.db import utcnow
from jobs.models import Job
from jobs.pipeline import Sampling
from jobs.store import (
    Claim,
    NewJob,
    Output,
    Store,
)
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


def submit(store: Store, **changes: object) -> Job:
    job, created = store.submit(replace(QUESTION, **changes), max_queued=1000)  # type: ignore[arg-type]  # any field
    assert created
    return job


def claim(
    store: Store, job: Job, stage_index: int = 0, worker: str = WORKER, *, alone: bool = False
) -> Claim:
    found = store.claim(job.id, stage_index, worker, job_timeout=60, alone=alone)
    assert found is not None
    return found


def let_leases_run_out(store: Store) -> None:
    """Turn the clock back in the rows, since a lease cannot be waited for in a test."""
    with store.engine.begin() as connection:
        leased = sa.update(Job).where(Job.worker_id.is_not(None))
        connection.execute(leased.values(lease_expires_at=utcnow(-1)))
