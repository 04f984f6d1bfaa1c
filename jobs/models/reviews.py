"""What people say about jobs."""

from __future__ import annotations

import datetime as dt

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from jobs.column_types import ExactJSON, ExactText
from jobs.database_clock import utcnow
from jobs.models.base import Base, partial


class Review(Base):
    """A person's verdict on an ended job.

    It is never changed: a later review of the same person counts instead, and both stay. Only an erasure
    takes texts out of it, and only the job's deletion deletes it; triggers refuse all else.
    """

    __tablename__ = "reviews"

    id: Mapped[str] = mapped_column(sa.String(40), primary_key=True)
    job_id: Mapped[str] = mapped_column(sa.ForeignKey("jobs.id", ondelete="CASCADE"))
    #: 0 for the job's first review, 1 for the next.
    number: Mapped[int]
    #: Who says so: the owner of the API key, or the name that was given where no keys are required.
    reviewer: Mapped[str] = mapped_column(ExactText)
    key_id: Mapped[str | None] = mapped_column(sa.String(40))
    #: Whether the critique is right, and whether the regeneration is good: -1, 0 or 1.
    critique: Mapped[int | None]
    regeneration: Mapped[int | None]
    #: What the answer should have been.
    corrected_answer: Mapped[str | None] = mapped_column(ExactText)
    tags: Mapped[list[str]] = mapped_column(ExactJSON)
    note: Mapped[str | None] = mapped_column(ExactText)
    created_at: Mapped[dt.datetime] = mapped_column(default=utcnow())
    #: The client's ``Idempotency-Key``, and the SHA-256 of the request that came with it.
    idempotency_key: Mapped[str | None] = mapped_column(sa.String(255))
    request_digest: Mapped[str | None] = mapped_column(sa.String(64))

    #: Its entry in the log, and the salts of its record, as a job has them.
    log_index: Mapped[int | None] = mapped_column(sa.BigInteger)
    log_salt: Mapped[bytes | None]
    log_salts: Mapped[dict[str, str] | None] = mapped_column(ExactJSON)
    #: Of an imported review: the proof of its entry in the first log that had it; null if it came without one.
    origin_proof: Mapped[str | None] = mapped_column(sa.Text)

    __table_args__ = (
        sa.UniqueConstraint("job_id", "number"),
        sa.CheckConstraint("critique BETWEEN -1 AND 1", name="critique"),
        sa.CheckConstraint("regeneration BETWEEN -1 AND 1", name="regeneration"),
        # The latest ones, for the queue and for agreement.
        sa.Index(None, "created_at", "id"),
        partial("ix_reviews_unsealed", "created_at", where="log_index IS NULL"),
    )
