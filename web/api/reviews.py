"""The endpoints of reviews."""

from __future__ import annotations

from typing import get_args

from flask import Response, jsonify

from jobs.errors import JobNotFoundError
from jobs.protocol import reviews as protocol
from jobs.protocol.errors import invalid_value
from jobs.protocol.history import history
from jobs.protocol.reviews import CreateReview
from jobs.protocol.validation import parse
from jobs.use_cases import review_agreement, review_queue, reviewing
from jobs.use_cases.review_queue import Kind
from web import query
from web.api.routes import blueprint
from web.caller import get_caller
from web.idempotency import keyed_request
from web.request_body import read_json
from web.services import get_services

#: The parameters of a range of time.
TIMES = ("since", "until")


@blueprint.get("/jobs/<job_id>/reviews")
def list_reviews(job_id: str) -> Response:
    """List the reviews of a job, the oldest first."""
    return jsonify(data=_history(job_id)["reviews"])


@blueprint.post("/jobs/<job_id>/reviews")
def add_review(job_id: str) -> Response:
    """Add a review of a job that has ended. A person's last review counts; the earlier ones stay."""
    services, caller = get_services(), get_caller()
    data = read_json()
    keyed = keyed_request(data)
    body = parse(CreateReview, data)
    if caller.key is not None and body.reviewer is not None:
        raise invalid_value(
            "reviewer", "`reviewer` is for servers without API keys. Here it is the key's owner."
        )
    review_id = reviewing.add(
        services.database,
        services.readable_owner,
        job_id,
        protocol.new_review(body),
        reviewer=body.reviewer or caller.owner,
        key_id=caller.key_id,
        keyed=keyed,
    )
    found = [review for review in _history(job_id)["reviews"] if review["id"] == review_id]
    if not found:
        raise JobNotFoundError(job_id)  # It was deleted meanwhile.
    reply = jsonify(found[0])
    reply.status_code = 201
    return reply


@blueprint.get("/reviews/queue")
def list_review_queue() -> Response:
    """List jobs to review next: a sample of those without a review, or those that reviewers disagree on."""
    query.check_names("parameter", ("kind", "limit", "reviewer", "seed", *TIMES))
    services = get_services()
    since, until = query.times()
    kind: Kind = query.choice("kind", "unreviewed", get_args(Kind))
    found = review_queue.queue(
        services.database,
        services.readable_owner,
        reviewer=query.text("reviewer", services.owner, protocol.MAX_NAME),
        kind=kind,
        seed=query.integer("seed", 0, 0, protocol.MAX_SEED),
        limit=query.integer("limit", query.DEFAULT_PAGE_SIZE, 1, query.MAX_PAGE_SIZE),
        since=since,
        until=until,
    )
    return jsonify(protocol.queue(found))


@blueprint.get("/reviews/agreement")
def get_review_agreement() -> Response:
    """Reply with how far reviewers agree: Cohen's kappa of two, Krippendorff's alpha of more."""
    query.check_names("parameter", TIMES)
    services = get_services()
    since, until = query.times()
    found = review_agreement.agreement(
        services.database,
        services.readable_owner,
        since=since,
        until=until,
    )
    return jsonify(protocol.agreement(found))


def _history(job_id: str) -> dict[str, list[dict[str, object]]]:
    return history(get_services().get_job(job_id, with_history=True))
