"""The endpoints of the pages."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, redirect, request, url_for
from werkzeug.wrappers import Response

from jobs.errors import QueueFullError, QuotaExceededError
from jobs.models import Scope
from jobs.protocol.errors import ProtocolError, translate
from jobs.protocol.new_job import new_job
from jobs.protocol.validation import validate
from web.caller import get_caller
from web.errors import headers_of, status_of
from web.pages import ask_page, asking, filters, footer, history, job_page
from web.pages import stats as stats_page
from web.services import get_services

blueprint = Blueprint(
    "pages",
    __name__,
    template_folder="templates",
    static_folder="static",
    static_url_path="/assets",
)
filters.register(blueprint)
footer.register(blueprint)


@blueprint.get("/")
def ask() -> Response | str:
    """Show the form: empty, with a question (``?question=…``), or with what a job was asked (``?from=ID``)."""
    if not get_caller().may(Scope.ASK):
        return redirect(url_for("pages.jobs"), code=303)
    if job_id := request.args.get("from"):
        job = get_services().get_job(job_id)
        return ask_page.show(asking.of_job(job), again=job)
    return ask_page.show({"question": request.args.get("question", "")})


@blueprint.post("/")
def submit() -> Response | tuple[str, int, dict[str, str]]:
    """Submit the question of the form, and redirect to the job's page."""
    # Browsers send the line breaks of a form as CR LF. The user typed LF.
    form = {name: value.replace("\r\n", "\n") for name, value in request.form.items()}
    services = get_services()
    try:
        body = validate({"background": True, **asking.parameters(form)})
        job = services.submit(new_job(body, services.tokens))
    except (ProtocolError, QueueFullError, QuotaExceededError) as caught:
        error = translate(caught)
        return ask_page.show(form, error), status_of(error), headers_of(error)
    return redirect(url_for("pages.job", job_id=job.id), code=303)


@blueprint.get("/jobs")
def jobs() -> Response | str | tuple[str, int]:
    """List the jobs, and search them."""
    return history.show()


@blueprint.get("/jobs/news")
def jobs_news() -> dict[str, Any]:
    """Reply with how many jobs of a list are newer than one of them."""
    return history.news()


@blueprint.get("/stats")
def stats() -> Response | str | tuple[str, int]:
    """Show statistics of ended jobs."""
    return stats_page.show()


@blueprint.get("/jobs/<job_id>")
def job(job_id: str) -> str:
    """Show a job: the final answer first, then all texts, the timeline and the evidence."""
    return job_page.show(job_id)
