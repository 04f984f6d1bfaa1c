"""The form of a review: from its fields to a review that is stored."""

from __future__ import annotations

from typing import Any

from flask import request

from jobs.protocol import reviews as protocol
from jobs.protocol.reviews import CreateReview
from jobs.protocol.validation import parse
from jobs.use_cases import reviewing
from web.caller import get_caller
from web.services import get_services


def fields() -> dict[str, str]:
    """Return the fields that were sent, with the line breaks that the user typed: browsers send CR LF."""
    return {name: value.replace("\r\n", "\n") for name, value in request.form.items()}


def add(job_id: str) -> None:
    """Add the review that was sent to a job that the caller may read.

    Raises:
        InvalidRequestError: the review is empty, or a field is too long.
        JobNotFoundError: the caller may read no such job.
        NotEndedError: the job has not ended.
    """
    services, caller, form = get_services(), get_caller(), fields()
    given: dict[str, Any] = {
        name: int(form[name]) for name in reviewing.RATINGS if form.get(name) in ("-1", "0", "1")
    }
    given |= {name: form.get(name) for name in ("corrected_answer", "note")}
    if tags := [tag.strip() for tag in form.get("tags", "").split(",") if tag.strip()]:
        given["tags"] = tags
    if caller.key is None and (reviewer := form.get("reviewer", "").strip()):
        given["reviewer"] = reviewer
    body = parse(CreateReview, given)
    reviewing.add(
        services.database,
        services.readable_owner,
        job_id,
        protocol.new_review(body),
        reviewer=body.reviewer or caller.owner,
        key_id=caller.key_id,
    )
