"""Reviews: the bodies of requests, and what the API says about them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, StringConstraints

from jobs.models import Job
from jobs.protocol.base import RequestObject
from jobs.protocol.errors import InvalidRequestError
from jobs.protocol.history import summary
from jobs.use_cases.review_agreement import Agreement, Rating
from jobs.use_cases.reviewing import NewReview
from jobs.use_cases.verdicts import Verdict

#: The maximum number of characters of a reviewer's name.
MAX_NAME = 40
#: The largest seed of a sample.
MAX_SEED = 10**9

_Rating = Annotated[int, Field(ge=-1, le=1)]
_Tag = Annotated[str, StringConstraints(min_length=1, max_length=64)]
_Name = Annotated[str, StringConstraints(min_length=1, max_length=MAX_NAME, pattern=r"\S")]


class CreateReview(RequestObject):
    """The body of ``POST /api/jobs/{id}/reviews``."""

    critique: _Rating | None = None
    regeneration: _Rating | None = None
    corrected_answer: str | None = None
    tags: Annotated[list[_Tag], Field(max_length=20)] | None = None
    note: str | None = None
    reviewer: _Name | None = None


def new_review(body: CreateReview) -> NewReview:
    """Return the review of a request.

    Raises:
        InvalidRequestError: it says nothing.
    """
    review = NewReview(
        critique=body.critique,
        regeneration=body.regeneration,
        corrected_answer=_text(body.corrected_answer),
        tags=tuple(dict.fromkeys(body.tags or ())),
        note=_text(body.note),
    )
    if review == NewReview():
        raise InvalidRequestError(
            "The review is empty. It needs `critique`, `regeneration`, `corrected_answer`, `tags` or `note`.",
            code="missing_required_parameter",
            param="regeneration",
        )
    return review


def _text(sent: str | None) -> str | None:
    # Forms send the fields that were left empty.
    return sent if sent and sent.strip() else None


def queue(found: list[tuple[Job, dict[str, Verdict]]]) -> dict[str, Any]:
    """Return the jobs to review next."""
    data = []
    for job, verdicts in found:
        given = [
            {"reviewer": reviewer, **verdict._asdict()} for reviewer, verdict in verdicts.items()
        ]
        data.append({**summary(job), "verdicts": given})
    return {"data": data}


def agreement(found: Mapping[Rating, Agreement]) -> dict[str, Any]:
    """Return how far reviewers agree."""
    return {name: each._asdict() for name, each in found.items()}
