"""Requests with an idempotency key."""

from __future__ import annotations

import datetime as dt
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from jobs.database_clock import utcnow
from jobs.models.base import Base


class KeyedRequest(Base):
    """A request that changed something, and was sent with an ``Idempotency-Key``.

    What a request makes (a job, a file, a batch, a review) has its key in its own row.
    """

    __tablename__ = "keyed_requests"

    #: Of the API key that it was sent with, or `ANONYMOUS`.
    owner: Mapped[str] = mapped_column(sa.String(40), primary_key=True)
    key: Mapped[str] = mapped_column(sa.String(255), primary_key=True)
    #: SHA-256 of the path and the body.
    digest: Mapped[str] = mapped_column(sa.String(64))
    #: What came of it, as far as no other row says that. Null until it is done.
    outcome: Mapped[dict[str, Any] | None]
    #: What retention looks at.
    created_at: Mapped[dt.datetime] = mapped_column(default=utcnow(), index=True)
