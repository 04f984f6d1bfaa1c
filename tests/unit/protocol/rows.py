"""Jobs and attempts in memory, as the database reads them."""

from __future__ import annotations

import datetime as dt
from typing import Any

from jobs import pipeline
from jobs.models import Attempt, AttemptStatus, Job, Status, Worker

START = dt.datetime(2026, 1, 2, 3, 4, 5, 678000, dt.UTC)
END = START + dt.timedelta(seconds=9)

WORKER = Worker(
    id="worker-1",
    host="gpu-1",
    pid=42,
    model="ab" * 32,
    runtime={"engine": "none", "dtype": "none"},
)


def make_job(status: Status = Status.QUEUED, **changes: Any) -> Job:
    """Make a job without attempts."""
    values: dict[str, Any] = {
        "id": "resp_0123",
        "status": status,
        "question": "Why?",
        "system": "Be brief.",
        "temperature": 0.75,
        "top_k": 50,
        "top_p": 1.0,
        "max_output_tokens": 8,
        "seed": 7,
        "rounds": 1,
        "priority": 5,
        "background": True,
        "metadata_": {"team": "blue"},
        "created_at": START,
        "started_at": None if status is Status.QUEUED else START,
        "finished_at": END if status.final else None,
        "run": 1,
        "restarts": [],
        "retries": [],
        "attempts": [],
        **changes,
    }
    return Job(**values)


def add_attempt(
    job: Job, stage_index: int, status: AttemptStatus = AttemptStatus.FINISHED, **changes: Any
) -> Attempt:
    """Add an attempt at a stage to a job; a finished one has the text "One two." in two pieces."""
    stage = pipeline.stages(job.rounds)[stage_index]
    finished = status is AttemptStatus.FINISHED
    values: dict[str, Any] = {
        "id": len(job.attempts) + 1,
        "stage_index": stage_index,
        "role": stage.role,
        "round": stage.round,
        "run": job.run,
        "number": 1,
        "status": status,
        "worker": WORKER,
        "prompt": "A prompt",
        "output": "One two." if finished else None,
        "delta_lengths": [4, 4] if finished else None,
        "temperature": job.temperature,
        "top_k": job.top_k,
        "top_p": job.top_p,
        "max_output_tokens": job.max_output_tokens,
        "seed": 1,
        "prompt_tokens": 10 if finished else None,
        "output_tokens": 3 if finished else None,
        "finish_reason": "stop" if finished else None,
        "queued_at": START,
        "started_at": START,
        "first_token_at": START if finished else None,
        "finished_at": END if finished else None,
        **changes,
    }
    attempt = Attempt(**values)
    job.attempts.append(attempt)
    return attempt


def completed_job(**changes: Any) -> Job:
    """Make a job all of whose stages have finished."""
    job = make_job(Status.COMPLETED, **changes)
    for stage in pipeline.stages(job.rounds):
        add_attempt(job, stage.index)
    return job
