"""What a reader does with a job: cancel, retry, replay, review, download. A form's reply is the job's page."""

from __future__ import annotations

from typing import Any

from flask import Response, render_template, request, url_for
from flask import redirect as redirect_to
from werkzeug.wrappers import Response as BaseResponse

from jobs.use_cases.replaying import replay_of
from web.pages import job_page, review_form, view
from web.pages.routes import blueprint
from web.services import get_services


@blueprint.post("/jobs/<job_id>/cancel")
def cancel(job_id: str) -> BaseResponse:
    """Cancel a job, and redirect to its page."""
    get_services().cancel(job_id)
    return _to_job(job_id)


@blueprint.post("/jobs/<job_id>/retry")
def retry(job_id: str) -> BaseResponse:
    """Continue a failed job, and redirect to its page."""
    get_services().retry(job_id)
    return _to_job(job_id)


@blueprint.post("/jobs/<job_id>/replay")
def replay(job_id: str) -> BaseResponse:
    """Submit a job again with the same seed, and redirect to the replay's page, which compares both."""
    services = get_services()
    job = services.get_job(job_id, with_history=True)
    return _to_job(services.submit(replay_of(job)).id)


@blueprint.post("/jobs/<job_id>/review")
def review(job_id: str) -> BaseResponse:
    """Add a review of a job that has ended, and redirect to its page."""
    review_form.add(job_id)
    return _to_job(job_id, "reviews")


@blueprint.get("/jobs/<job_id>/markdown")
def download(job_id: str) -> Response:
    """Reply with a job's question and texts as a file of Markdown, each text exactly as it is."""
    job = get_services().get_job(job_id, with_history=True)
    text = render_template("job.md", job=job, stages=view.exact(job))
    response = Response(text, content_type="text/markdown; charset=utf-8")
    response.headers["Content-Disposition"] = f'attachment; filename="{job_id}.md"'
    return response


@blueprint.get("/jobs/<job_id>/news")
def news(job_id: str) -> dict[str, Any]:
    """Reply with what a job's page shows between two events."""
    return job_page.news(job_id)


@blueprint.get("/jobs/<job_id>/attempts/<int:index>")
def attempt(job_id: str, index: int) -> str:
    """Show the exact prompt and output of an attempt."""
    return job_page.show_attempt(job_id, index)


@blueprint.get("/compare")
def compare() -> str:
    """Compare two jobs stage by stage."""
    return job_page.show_comparison(request.args.get("left", ""), request.args.get("right", ""))


def _to_job(job_id: str, anchor: str | None = None) -> BaseResponse:
    return redirect_to(url_for("pages.job", job_id=job_id, _anchor=anchor), code=303)
