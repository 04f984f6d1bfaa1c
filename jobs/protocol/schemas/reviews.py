"""The shapes of reviews, and of how far reviewers agree."""

from __future__ import annotations

from typing import Literal

from jobs.protocol.schemas.base import Digest, Reply, Time
from jobs.protocol.schemas.summary import ErasedText, LogPlace, Summary


class Review(Reply):
    """A person's verdict on a job."""

    id: str
    number: int
    reviewer: str | ErasedText
    key: str | None
    created_at: Time
    critique: int | None
    regeneration: int | None
    corrected_answer: str | ErasedText | None
    tags: ErasedText | list[str]
    note: str | ErasedText | None
    digest: Digest | None
    log: LogPlace | None


class ReviewList(Reply):
    data: list[Review]


class Verdict(Reply):
    reviewer: str
    critique: int | None
    regeneration: int | None


class ToReview(Summary):
    """A job to review, and what others said."""

    verdicts: list[Verdict]


class ReviewQueue(Reply):
    data: list[ToReview]


class Agreement(Reply):
    """How far reviewers agree in a rating."""

    measure: Literal["cohen_kappa", "krippendorff_alpha"] | None
    value: float | None
    reviewers: list[str]
    jobs: int


class Agreements(Reply):
    critique: Agreement
    regeneration: Agreement
