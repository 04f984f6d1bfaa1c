"""What a job's page says while the job waits or runs, in one sentence or two."""

from __future__ import annotations

import datetime as dt
from typing import Any

from jobs import pipeline
from jobs.models import Attempt, Job, Status
from jobs.protocol.response import item_id
from jobs.quantities import about, ordinal
from jobs.timing import SWEEP_INTERVAL
from jobs.use_cases.pausing import LastPause
from jobs.use_cases.standing import CAP, Standing
from web.pages import view
from web.pages.options import Options


def describe(job: Job, standing: Standing, now: dt.datetime) -> str:
    """Return a sentence about the progress of a job that has not ended.

    Args:
        job: with its attempts and their workers.
        standing: of the job.
        now: the time.
    """
    running = view.running(job)
    if running is not None:
        text = _running(job, running, now)
        return text if standing.pause is None else f"{text} {paused(standing.pause, now)}"
    if standing.pause is not None:
        if standing.place is None and job.status is Status.IN_PROGRESS:
            return f"{paused(standing.pause, now)} The next stage waits."
        more = " or more" if standing.queued >= CAP else ""
        others = f"{standing.queued:,}{more} questions wait"
        return f"{paused(standing.pause, now)} {'1 question waits' if standing.queued == 1 else others}."
    if not standing.ready:
        if standing.seen_at is None:
            return "No worker has ever been started."
        which = " with the job's model" if job.model else ""
        return f"No worker{which} is ready (last seen {_clock(standing.seen_at, now)})."
    ready = f"{standing.ready} worker{'' if standing.ready == 1 else 's'} ready"
    if standing.place is None:
        return f"The next stage waits for a worker; {ready}."
    wait = "" if standing.wait is None else f", {about(standing.wait.total_seconds())}"
    later = " or later" if standing.place >= CAP else ""
    more = " or more" if standing.queued >= CAP else ""
    return f"{ordinal(standing.place)}{later} of {standing.queued:,}{more}{wait}; {ready}."


def outlook_sentence(standing: Standing, now: dt.datetime) -> str:
    """Return how long a question would wait if it were asked now.

    Args:
        standing: of a job that would be accepted now.
        now: the time.
    """
    if standing.pause is not None:
        return f"{paused(standing.pause, now)} Questions are accepted, and wait."
    if not standing.ready:
        if standing.seen_at is None:
            return "No worker has ever been started: questions wait for one."
        return f"No worker is ready (last seen {_clock(standing.seen_at, now)}): questions wait."
    ready = f"{standing.ready} worker{'' if standing.ready == 1 else 's'} ready"
    if not standing.queued:
        return f"{ready}, no questions waiting."
    more = " or more" if standing.queued >= CAP else ""
    noun = "question" if standing.queued == 1 else "questions"
    ahead = f"{standing.queued:,}{more} {noun} waiting"
    wait = (
        ""
        if standing.wait is None
        else f"; a new one starts in {about(standing.wait.total_seconds())}"
    )
    return f"{ready}, {ahead}{wait}."


def paused(pause: LastPause, now: dt.datetime) -> str:
    """Return a sentence about the pause of the queue: since when, and the operator's note."""
    note = "" if pause.note is None else f": {pause.note.rstrip('.')}"
    return f"The queue has been paused since {_clock(pause.paused_at, now)}{note}."


def news(job: Job, sentence: str, now: dt.datetime) -> dict[str, Any]:
    """Return what the page's script shows between two events: a sentence, and the state of each stage."""
    stages = view.stages(job, now, Options(diff="off"))
    running = view.running(job)
    return {
        "status": job.status.value,
        "run": job.run,
        "sentence": sentence,
        "started_at": running and running.started_at.isoformat(),
        "stages": {
            item_id(job, stage, job.run): {
                "state": shown.state,
                "attempt": shown.attempt.number if shown.attempt else None,
            }
            for stage, shown in zip(pipeline.stages(job.rounds), stages, strict=True)
        },
    }


def _running(job: Job, attempt: Attempt, now: dt.datetime) -> str:
    title = view.title(job, attempt.role, attempt.round)
    seen = max(now - attempt.worker.seen_at, dt.timedelta())
    if not view.is_silent(attempt, now):
        return f"{title} on {attempt.worker.host}, last heartbeat {_ago(seen)}."
    again = "It is about to be tried again."
    if job.lease_expires_at is not None and job.lease_expires_at > now:
        left = (job.lease_expires_at - now).total_seconds() + SWEEP_INTERVAL
        again = f"If it stays silent, the stage is tried again in about {left:.0f} s."
    return (
        f"The worker {attempt.worker.host} is silent: its last heartbeat was {_ago(seen)}. {again}"
    )


def _ago(delta: dt.timedelta) -> str:
    return f"{delta.total_seconds():.0f} s ago"


def _clock(time: dt.datetime, now: dt.datetime) -> str:
    """Return a time of day, with the date unless it is today."""
    return time.strftime("%H:%M UTC" if time.date() == now.date() else "%Y-%m-%d %H:%M UTC")
