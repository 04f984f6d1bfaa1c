"""Replaying: asking a job's question again, as it was asked, to see whether the same texts come out."""

from __future__ import annotations

from typing import Any

from jobs.errors import ErasedError, NothingToReplayError
from jobs.models import Job
from jobs.pipeline import Sampling, Turn, sampling_values
from jobs.use_cases.submission import NewJob


def replay_of(job: Job) -> NewJob:
    """Return the job that repeats a job: the same question, parameters and seed.

    Args:
        job: with its input items and its attempts.

    Raises:
        NothingToReplayError: none of its stages has finished.
        ErasedError: texts of it were erased.
    """
    if job.has_lost_texts:
        raise ErasedError(job.id)
    if not job.finished:
        raise NothingToReplayError(job.id)
    turns: Any = job.turns
    return NewJob(
        question=job.question,
        system=job.system,
        sampling=Sampling(**sampling_values(job), stop=tuple(job.stop or ())),
        rounds=job.rounds,
        priority=job.priority,
        background=True,
        metadata={},
        input_items=job.input_items,
        turns=None if turns is None else [Turn(**turn) for turn in turns],
        previous_response_id=job.previous_response_id,
        options=job.options,
        replay_of=job.id,
    )
