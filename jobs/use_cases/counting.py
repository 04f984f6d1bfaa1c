"""What a job that has ended counts for in the statistics."""

from __future__ import annotations

import datetime as dt
from typing import Any

from jobs.models import AttemptStatus, Job
from jobs.statistics.counted import MILLION, Counted, Stage
from jobs.times import MICROSECOND

#: What a worker says of a model (`jobs.use_cases.workers.Runtime.model`).
_DESCRIBED = ("base", "adapters", "dtype", "quantization", "engine")


def counted(job: Job, changed: float | None) -> Counted:
    """Return what a job counts for: its current run's finished stages, and the last ratings.

    Args:
        job: that has ended, with its attempts and reviews loaded.
        changed: the share of words that the regenerator changed.
    """
    assert job.finished_at is not None  # noqa: S101 (it has ended)
    return Counted(
        status=job.status.value,
        attempts=len(job.attempts),
        lost=sum(attempt.status is AttemptStatus.LOST for attempt in job.attempts),
        queue_wait=None if job.started_at is None else _between(job.created_at, job.started_at),
        duration=_between(job.created_at, job.finished_at),
        changed=None if changed is None else round(changed * MILLION),
        regeneration=job.rating,
        critique=job.critique_rating,
        reviews=len(job.reviews),
        corrected=sum(review.corrected_answer is not None for review in job.reviews),
        stages=tuple(
            Stage(
                attempt.role.value,
                _between(attempt.started_at, attempt.finished_at or attempt.started_at),
                None
                if attempt.first_token_at is None
                else _between(attempt.started_at, attempt.first_token_at),
                attempt.prompt_tokens,
                attempt.output_tokens,
            )
            for attempt in job.finished
        ),
    )


def models(job: Job) -> dict[str, dict[str, Any]]:
    """Return what a job's model is: nothing if it has none, or no attempt of a worker with it.

    Args:
        job: with its attempts and their workers loaded.
    """
    for attempt in reversed(job.attempts):
        if attempt.worker.model == job.model:
            runtime = attempt.worker.runtime
            return {job.model: {name: runtime[name] for name in _DESCRIBED if name in runtime}}
    return {}


def _between(start: dt.datetime, end: dt.datetime) -> int:
    """Return microseconds. Clocks of a worker and of the database may differ a little."""
    return max(0, (end - start) // MICROSECOND)
