"""What a reader does with several jobs of the list: cancel, retry, replay; compare, export.

Jobs are independent of each other. The reply to a form says for how many it worked, and why not for each other one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flask import redirect, render_template, request, url_for
from werkzeug.wrappers import Response

from jobs.errors import JobNotFoundError, UserError
from jobs.models import Job, Status
from jobs.protocol.errors import InvalidRequestError, invalid_value
from jobs.use_cases import queries
from jobs.use_cases.replaying import replay_of
from web.pages.routes import blueprint
from web.query import MAX_PAGE_SIZE
from web.services import get_services

#: The maximum number of selected jobs: those of the longest page.
MAX_SELECTED = MAX_PAGE_SIZE


@dataclass(frozen=True)
class Outcome:
    """The outcome for one job."""

    job_id: str
    #: None if there is no such job.
    job: Job | None
    #: Why it was not done; None if it was.
    reason: str | None = None
    #: The replay that was submitted.
    replay: Job | None = None


@blueprint.get("/jobs/selected")
def selected_reads() -> Response:
    """Compare the two selected jobs, or export all of them."""
    ids = _ids(request.args.getlist("job"))
    action = request.args.get("action")
    if action == "compare":
        if len(ids) != 2:
            raise invalid_value("job", f"Select exactly two jobs to compare, not {len(ids)}.")
        left, right = ids
        return redirect(url_for("pages.compare", left=left, right=right), code=303)
    if action != "export":
        raise _unknown("`compare` or `export`")
    services = get_services()
    for job_id in ids:
        # The reader gets a page that says which is missing, and not the API's error.
        queries.get_version(services.database, services.readable_owner, job_id)
    return redirect(url_for("api.export_jobs", ids=",".join(ids)), code=303)


@blueprint.post("/jobs/selected")
def selected() -> str:
    """Cancel, retry or replay the selected jobs, and show the outcome of each."""
    action = request.form.get("action", "")
    if action not in _ACTIONS:
        raise _unknown("`cancel`, `retry` or `replay`")
    participle, act = _ACTIONS[action]
    outcomes = [_try(act, job_id) for job_id in _ids(request.form.getlist("job"))]
    done = [outcome for outcome in outcomes if outcome.reason is None]
    return render_template(
        "selected.html",
        participle=participle,
        done=done,
        refused=[outcome for outcome in outcomes if outcome.reason is not None],
        total=len(outcomes),
        back=f"{url_for('pages.jobs')}?{request.form.get('back', '')}".removesuffix("?"),
    )


def _unknown(actions: str) -> InvalidRequestError:
    return invalid_value("action", f"`action` must be {actions}.")


def _ids(given: Sequence[str]) -> list[str]:
    ids = list(dict.fromkeys(given))
    if not 0 < len(ids) <= MAX_SELECTED:
        raise invalid_value("job", f"Select 1 to {MAX_SELECTED} jobs, not {len(ids)}.")
    return ids


def _try(act: Callable[[Job], Outcome], job_id: str) -> Outcome:
    try:
        job = get_services().get_job(job_id, with_history=True)
    except JobNotFoundError:
        return Outcome(job_id, None, "There is no such job.")
    try:
        return act(job)
    except JobNotFoundError:
        return Outcome(job_id, job, "It is another owner's job, or was deleted.")
    except UserError as error:
        return Outcome(job_id, job, str(error))


def _cancel(job: Job) -> Outcome:
    if job.status.final:
        return Outcome(job.id, job, f"It has ended already: it is {job.status}.")
    after = get_services().cancel(job.id)
    if after.status is not Status.CANCELLED:
        return Outcome(job.id, after, f"It ended meanwhile: it is {after.status}.")
    return Outcome(job.id, after)


def _retry(job: Job) -> Outcome:
    return Outcome(job.id, get_services().retry(job.id))


def _replay(job: Job) -> Outcome:
    return Outcome(job.id, job, replay=get_services().submit(replay_of(job)))


_ACTIONS: dict[str, tuple[str, Callable[[Job], Outcome]]] = {
    "cancel": ("cancelled", _cancel),
    "retry": ("retried", _retry),
    "replay": ("replayed", _replay),
}
