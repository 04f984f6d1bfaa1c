"""The endpoints of the pages."""

from __future__ import annotations

from flask import Blueprint, redirect, render_template, request, url_for
from werkzeug.wrappers import Response

from jobs.errors import QueueFullError, QuotaExceededError
from jobs.models import Scope
from jobs.protocol.errors import ProtocolError, translate
from jobs.protocol.new_job import new_job
from jobs.protocol.validation import validate
from jobs.use_cases import queries
from web.caller import get_caller
from web.errors import headers_of, status_of
from web.pages import filters, history, view
from web.services import get_services

blueprint = Blueprint(
    "pages",
    __name__,
    template_folder="templates",
    static_folder="static",
    # Flask reserves /static for a folder of the application, which has none.
    static_url_path="/assets",
)
filters.register(blueprint)


@blueprint.get("/")
def ask() -> Response | str:
    """Show the form."""
    if not get_caller().may(Scope.ASK):
        return redirect(url_for("pages.jobs"), code=303)
    return _form(question="")


@blueprint.post("/")
def submit() -> Response | tuple[str, int, dict[str, str]]:
    """Submit the question of the form, and redirect to the job's page."""
    # Browsers send the line breaks of a form as CR LF. The user typed LF.
    question = request.form.get("question", "").replace("\r\n", "\n")
    services = get_services()
    try:
        body = validate({"input": question, "background": True})
        job = services.submit(new_job(body, services.tokens))
    except (ProtocolError, QueueFullError, QuotaExceededError) as caught:
        error = translate(caught)
        # The API's message for this error is about parameters that the form does not have.
        message = "Enter a question." if error.code == "empty_input" else error.message
        return _form(question, message), status_of(error), headers_of(error)
    return redirect(url_for("pages.job", job_id=job.id), code=303)


@blueprint.get("/jobs")
def jobs() -> Response | str | tuple[str, int]:
    """List the jobs, and search them."""
    return history.show()


@blueprint.get("/jobs/<job_id>")
def job(job_id: str) -> str:
    """Show a job: its texts side by side, as far as they are stored."""
    services = get_services()
    job = queries.get_job(services.database, services.readable_owner, job_id)
    caller = get_caller()
    return render_template(
        "job.html",
        job=job,
        may_change=caller.may(Scope.ASK) and caller.changeable_owner in (None, job.owner),
        live=view.is_live(job),
        stages=view.stages(job),
        earlier_runs=view.earlier_runs(job),
    )


@blueprint.post("/jobs/<job_id>/cancel")
def cancel(job_id: str) -> Response:
    """Cancel a job, and redirect to its page."""
    get_services().cancel(job_id)
    return redirect(url_for("pages.job", job_id=job_id), code=303)


@blueprint.post("/jobs/<job_id>/retry")
def retry(job_id: str) -> Response:
    """Let a failed job go on, and redirect to its page."""
    get_services().retry(job_id)
    return redirect(url_for("pages.job", job_id=job_id), code=303)


def _form(question: str, message: str | None = None) -> str:
    return render_template("ask.html", question=question, message=message)
