"""The pages' addresses."""

from __future__ import annotations

import datetime as dt
from typing import Any

from flask import Blueprint, redirect, render_template, request, url_for
from werkzeug.wrappers import Response

from jobs import pipeline
from jobs.models import Attempt, AttemptStatus, Job, Status
from jobs.protocol.errors import ProtocolError
from jobs.protocol.new_job import new_job
from jobs.protocol.response import item_id
from jobs.protocol.validation import validate
from web.errors import status_of
from web.services import get_services

blueprint = Blueprint(
    "pages",
    __name__,
    template_folder="templates",
    static_folder="static",
    # Flask keeps /static for the application's own folder, which there is none of.
    static_url_path="/assets",
)

PAGE = 25
#: How long after a cancel the text of the stage that it stopped may still come.
LATEST_TEXT = dt.timedelta(seconds=5)
#: What a person calls a stage's text.
TITLES = {
    pipeline.Role.ACTOR: "Answer",
    pipeline.Role.CRITIC: "Critique",
    pipeline.Role.REGENERATOR: "Regeneration",
}
STATUSES = {
    Status.QUEUED: "Queued",
    Status.IN_PROGRESS: "In progress",
    Status.COMPLETED: "Completed",
    Status.FAILED: "Failed",
    Status.CANCELLED: "Cancelled",
    Status.INCOMPLETE: "Incomplete",
}


@blueprint.get("/")
def ask() -> str:
    """Show the form."""
    return _form(question="")


@blueprint.post("/")
def submit() -> Response | tuple[str, int]:
    """Take a question from the form, and go to its page."""
    # Browsers send line breaks of a form as CR LF; the person typed LF.
    question = request.form.get("question", "").replace("\r\n", "\n")
    services = get_services()
    try:
        body = validate({"input": question, "background": True})
        job, _ = services.submit(new_job(body, services.tokens))
    except ProtocolError as error:
        # The API's message for this one speaks of parameters that the form does not have.
        message = "Please write a question." if error.code == "empty_input" else error.message
        return _form(question=question, message=message), status_of(error)
    return redirect(url_for("pages.job", job_id=job.id), code=303)


@blueprint.get("/jobs")
def jobs() -> str:
    """List what was asked, newest first."""
    page, more = get_services().store.page(limit=PAGE, after=request.args.get("after") or None)
    return render_template("jobs.html", jobs=page, more=more, paged="after" in request.args)


@blueprint.get("/jobs/<job_id>")
def job(job_id: str) -> str:
    """Show a job: its texts side by side, as far as they are there."""
    found = get_services().store.job(job_id)
    return render_template(
        "job.html", job=found, live=_live(found), stages=_stages(found), earlier=_earlier(found)
    )


@blueprint.post("/jobs/<job_id>/cancel")
def cancel(job_id: str) -> Response:
    """End a job, and show it."""
    get_services().cancel(job_id)
    return redirect(url_for("pages.job", job_id=job_id), code=303)


def _form(question: str, message: str | None = None) -> str:
    return render_template("ask.html", question=question, message=message)


def _live(found: Job) -> bool:
    """Whether the page has something to wait for."""
    if found.finished_at is None:
        return True
    # The worker hands in what a cancelled stage had written a moment after the cancel.
    since = dt.datetime.now(dt.UTC) - found.finished_at
    late = any(a.status is AttemptStatus.RUNNING for a in found.attempts)
    return late and since < LATEST_TEXT


def _stages(found: Job) -> list[dict[str, Any]]:
    """Say for each stage what to show: its text, if there is one, and how far it is."""
    shown = []
    for stage in pipeline.stages(found.rounds):
        attempts = [a for a in found.of_run(found.run) if a.stage_index == stage.index]
        last = attempts[-1] if attempts else None
        title = TITLES[stage.role] + (f" {stage.round}" if found.rounds > 1 else "")
        shown.append(
            {
                "item": item_id(found, stage),
                "role": stage.role.value,
                "title": title,
                "attempt": last,
                "finished": last is not None and last.status is AttemptStatus.FINISHED,
                "state": _state(found, attempts),
            }
        )
    return shown


def _earlier(found: Job) -> list[dict[str, Any]]:
    """Tell of each earlier run how it was broken off, and what was written by then."""
    return [
        {
            "number": told["run"] - 1,
            "at": dt.datetime.fromisoformat(told["at"]),
            "model": told["model"][:12],
            "reason": told["reason"],
            "texts": [
                (TITLES[a.role] + (f" {a.round}" if found.rounds > 1 else ""), a.output)
                for a in found.of_run(told["run"] - 1)
                if a.status is AttemptStatus.FINISHED
            ],
        }
        for told in found.restarts
    ]


def _state(found: Job, attempts: list[Attempt]) -> str:
    if not attempts:
        return "not run" if found.status.final else "waiting"
    match attempts[-1].status:
        case AttemptStatus.FINISHED if attempts[-1].finish_reason == "length":
            return "cut at its token limit"
        case AttemptStatus.FINISHED:
            return "finished"
        case AttemptStatus.RUNNING:
            return "stopping" if found.status.final else "writing"
        case AttemptStatus.LOST | AttemptStatus.RELEASED if not found.status.final:
            return "waiting for another try"
        case status:
            return status.value


@blueprint.app_template_filter()
def status_name(status: Status) -> str:
    """Name a status for people."""
    return STATUSES[status]


@blueprint.app_template_filter()
def clock(time: dt.datetime) -> str:
    """Write a time for people without a script; the script turns it into their own zone."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC")


@blueprint.app_template_filter()
def seconds(duration: dt.timedelta) -> str:
    """Write a duration."""
    total = duration.total_seconds()
    if total < 60:
        return f"{total:.1f} s"
    return f"{int(total // 60)} min {int(total % 60)} s"
