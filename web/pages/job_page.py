"""The page of a job: what it shows, gathered from the use cases. The number of its queries does not grow."""

from __future__ import annotations

import datetime as dt
from typing import Any

from flask import render_template

from jobs.models import Job, Scope
from jobs.protocol.history import history
from jobs.protocol.replay import report
from jobs.use_cases import clock, pausing, queries, verifying_jobs
from jobs.use_cases import standing as places
from web.caller import get_caller
from web.errors import HTTPError
from web.pages import comparison, evidence, markdown, standing, timeline, view
from web.pages.options import DIFFS, Options
from web.services import get_services


def show(job_id: str) -> str:
    """Return the page of a job that the caller may read."""
    services, caller, options = get_services(), get_caller(), Options.of_request()
    owner = services.readable_owner
    job = services.get_job(job_id, with_history=True)
    now = clock.now(services.database)
    may_ask = caller.may(Scope.ASK)
    own = caller.changeable_owner in (None, job.owner)
    verdict = None
    if options.verify:
        verdict = verifying_jobs.verify_job(services.database, owner, job_id, history)
    older, newer = queries.find_beside(services.database, owner, job)
    final = view.final_attempt(job)
    answer = None if final is None else final.output or ""
    stages = view.stages(job, now, options)
    return render_template(
        "job.html",
        job=job,
        now=now,
        options=options,
        diffs=DIFFS,
        older=older,
        newer=newer,
        may_change=may_ask and own,
        may_ask=may_ask,
        live=view.is_live(job, now),
        standing=None if job.status.final else sentence(job, now),
        running=view.running(job),
        answer=answer,
        stopped=final is not None and final.finish_reason == "stop_string",
        rendered=None if answer is None or options.exact else markdown.render(answer),
        stages=stages,
        never_ran=view.never_ran(stages),
        earlier_runs=view.earlier_runs(job),
        bars=timeline.bars(job, now),
        evidence=evidence.attempts(job),
        workers=evidence.workers(job),
        record=evidence.record(job),
        verdict=verdict,
        replay=_replay(job),
        replays=_replays(job),
        max_replays=queries.MAX_REPLAYS,
        may_replay=may_ask and bool(job.finished) and not job.has_lost_texts,
        may_review=job.status.final,
    )


def show_attempt(job_id: str, index: int) -> str:
    """Return the page of an attempt, by its index in the history."""
    job = get_services().get_job(job_id, with_history=True)
    options = Options.of_request()
    found = evidence.attempts(job)
    if not 0 <= index < len(found):
        raise HTTPError(404, f"The job has no attempt {index}.", code="not_found")
    return render_template("attempt.html", job=job, options=options, each=found[index])


def show_comparison(left_id: str, right_id: str) -> str:
    """Return the page that compares two jobs that the caller may read."""
    options = Options.of_request()
    services = get_services()
    left, right = (services.get_job(job_id, with_history=True) for job_id in (left_id, right_id))
    return render_template(
        "compare.html",
        left=left,
        right=right,
        options=options,
        comparison=comparison.compare(left, right, options),
    )


def sentence(job: Job, now: dt.datetime) -> str:
    """Return a sentence about the progress of a job that has not ended."""
    database = get_services().database
    if view.running(job) is None:
        found = places.find_standing(database, job, now)
    else:
        found = places.Standing(None, 0, 0, None, None, pausing.current(database))
    return standing.describe(job, found, now)


def news(job_id: str) -> dict[str, Any]:
    """Return what the page's script shows between two events. It reads the job, and few rows besides."""
    services = get_services()
    job = services.get_job(job_id)
    now = clock.now(services.database)
    text = "" if job.status.final else sentence(job, now)
    return standing.news(job, text, now)


def _replays(job: Job) -> list[tuple[Job, bool | None]]:
    """Return the newest replays of a job, and whether all texts of each are the job's."""
    services = get_services()
    found = queries.list_replays(services.database, services.readable_owner, job.id)
    return [(replay, report(job, replay)["identical"]) for replay in found]


def _replay(job: Job) -> dict[str, Any] | None:
    """Return how a replay compares with the job that it replays; None if the job is no replay."""
    if job.replay_of is None:
        return None
    services = get_services()
    original = queries.find_original(services.database, services.readable_owner, job)
    return {**report(original, job), "found": original is not None}
