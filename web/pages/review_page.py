"""The page for reviewing one job after another. Its address has the reviewer's position."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from flask import redirect, render_template, request, url_for
from werkzeug.wrappers import Response

from jobs.errors import NotEndedError
from jobs.ids import is_id
from jobs.models import Job
from jobs.protocol.errors import InvalidRequestError, translate
from jobs.protocol.reviews import MAX_NAME, MAX_SEED
from jobs.use_cases import clock, review_agreement, review_queue
from jobs.use_cases.review_agreement import Agreement
from jobs.use_cases.review_queue import Kind, Mark
from web import query
from web.caller import get_caller
from web.errors import status_of
from web.pages import review_form, view
from web.pages.options import DIFFS, Options
from web.pages.routes import blueprint
from web.services import get_services

UNREVIEWED: Kind = "unreviewed"
KINDS: dict[Kind, str] = {UNREVIEWED: "Sample", "disagreements": "Disagreements"}
#: What of the address says which queue it is, and what says where in the queue the reviewer is.
_QUEUE = ("kind", "seed", "reviewer", "since", "until")
_PLACE = ("after", "reviewed")
#: The fields of a rating, with their keys and in their order.
RATINGS = (
    ("regeneration", "Regeneration", (("-1", "1"), ("0", "2"), ("1", "3"))),
    ("critique", "Critique", (("-1", "q"), ("0", "w"), ("1", "e"))),
)
MEANINGS = {"-1": "-1 bad", "0": "0 neutral", "1": "+1 good"}
MEASURES = {"cohen_kappa": "Cohen's kappa", "krippendorff_alpha": "Krippendorff's alpha"}
#: How many reviewers are named.
MAX_NAMED = 5


@dataclass(frozen=True)
class _Options(Options):
    """How texts are shown, on this page instead of the job's."""

    #: The parameters of the page's address.
    address: dict[str, str] = field(default_factory=dict)

    def url(self, job_id: str, anchor: str | None = None, **changes: Any) -> str:
        parameters = replace(self, **changes).parameters()
        return _url({**self.address, "job": job_id, **parameters}, anchor)


@blueprint.get("/review")
def reviewing_page() -> Response | str:
    """Show what the caller reviews next."""
    given = request.args.to_dict()
    stated = {name: value for name, value in given.items() if value.strip()}
    if stated != given:  # A form sends what was left empty.
        return redirect(_url(stated), code=303)
    pinned = stated.get("job")
    return _show(_whole(pinned) if pinned else None)


@blueprint.post("/review/<job_id>")
def submit_review(job_id: str) -> Response | tuple[str, int]:
    """Add a review, and redirect to what the caller reviews next."""
    try:
        review_form.add(job_id)
    except (InvalidRequestError, NotEndedError) as caught:
        error = translate(caught)
        return _show(_whole(job_id), error.message), status_of(error)
    # A job that was reviewed has left the sample, and reviewers may still disagree on it.
    address = _of_request(*_QUEUE, *_PLACE, "diff", "invisible")
    if address.get("kind") == "disagreements":
        address["after"] = job_id
    reviewer = review_form.fields().get("reviewer", "").strip()
    if get_caller().key is None and reviewer:
        address["reviewer"] = reviewer
    return redirect(_url({**address, "saved": job_id}), code=303)


def _whole(job_id: str) -> Job:
    return get_services().get_job(job_id, with_history=True)


def _show(job: Job | None, message: str | None = None) -> str:
    """Return the page of a job, or of the next one."""
    services, caller = get_services(), get_caller()
    owner = services.readable_owner
    kind = query.choice("kind", UNREVIEWED, tuple(KINDS))
    reviewer = caller.owner
    if caller.key is None:
        reviewer = query.text("reviewer", caller.owner, MAX_NAME)
    after = request.args.get("after")
    since, until = query.times()
    progress = review_queue.next_review(
        services.database,
        owner,
        reviewer=reviewer,
        kind=kind,
        seed=query.integer("seed", 0, 0, MAX_SEED),
        after=None if after is None else Mark(after, request.args.get("reviewed") == "1"),
        since=since,
        until=until,
    )
    if job is None and progress.next is not None:
        job = _whole(progress.next.job_id)
    here = _of_request(*_QUEUE, *_PLACE)
    of_request = Options.of_request()
    options = _Options(diff=of_request.diff, invisible=of_request.invisible, address=here)
    kept = {name: value for name, value in options.parameters().items() if value}
    queue = {**_of_request(*_QUEUE), **kept}
    others = job is not None and any(
        review.reviewer not in ("", reviewer) for review in job.reviews
    )
    skip = {"after": job.id} if job is not None else {}
    if others and kind == "unreviewed":
        skip["reviewed"] = "1"
    saved = request.args.get("saved", "")
    now = clock.now(services.database)
    stages = [] if job is None else view.stages(job, now, options)
    agreement = review_agreement.agreement(
        services.database, owner, since=since, until=until, limit=review_queue.WINDOW
    )
    return render_template(
        "review.html",
        job=job,
        progress=progress,
        kind=kind,
        kinds={name: (label, _url({**queue, "kind": name})) for name, label in KINDS.items()},
        reviewer=reviewer,
        given=review_form.fields(),
        stated=_of_request(*_QUEUE),
        options=options,
        diffs=DIFFS,
        stages=stages,
        never_ran=view.never_ran(stages),
        ratings=RATINGS,
        meanings=MEANINGS,
        action=job and url_for("pages.submit_review", job_id=job.id, **{**here, **kept}),  # type: ignore[arg-type]  # names of parameters
        skip=_url({**queue, **skip}),
        start=_url(queue),
        saved=saved if is_id(saved, "resp_") else None,
        agreement={name: _agreed(each) for name, each in agreement.items()},
        message=message,
        window=review_queue.WINDOW,
    )


def _agreed(agreement: Agreement) -> str:
    """Return how far reviewers agree, in words."""
    if agreement.measure is None:
        return "needs two reviewers of the same job"
    *names, last = agreement.reviewers[:MAX_NAMED]
    if len(agreement.reviewers) > MAX_NAMED:
        names, last = [*names, last], f"{len(agreement.reviewers) - MAX_NAMED} more"
    rated = f"{agreement.jobs} job{'' if agreement.jobs == 1 else 's'} that {', '.join(names)} and {last} rated"
    measure = MEASURES[agreement.measure]
    if agreement.value is None:
        return f"{measure} is not defined, since all ratings are the same: {rated}"
    return f"{measure} {agreement.value:.2f}, {rated}".replace("-", "−", 1)


def _of_request(*names: str) -> dict[str, str]:
    return {name: request.args[name] for name in names if request.args.get(name)}


def _url(parameters: dict[str, Any], anchor: str | None = None) -> str:
    return url_for("pages.reviewing_page", _anchor=anchor, **parameters)
