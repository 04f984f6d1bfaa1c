"""When the queue was paused, and by whom."""

from __future__ import annotations

import datetime as dt

from sqlalchemy.orm import Mapped, mapped_column

from jobs.column_types import ExactText
from jobs.database_clock import utcnow
from jobs.models.base import ROW_ID, Base, partial


class Pause(Base):
    """A pause of the queue: while it lasts, no worker claims a stage. At most one has not ended."""

    __tablename__ = "pauses"

    id: Mapped[int] = mapped_column(ROW_ID, primary_key=True)
    paused_at: Mapped[dt.datetime] = mapped_column(default=utcnow())
    #: The owner of the API key that paused the queue, or `ANONYMOUS`.
    paused_by: Mapped[str] = mapped_column(ExactText)
    #: What the operator said.
    note: Mapped[str | None] = mapped_column(ExactText)
    #: Null while it lasts.
    resumed_at: Mapped[dt.datetime | None]
    resumed_by: Mapped[str | None] = mapped_column(ExactText)

    __table_args__ = (partial("ix_pauses_current", "id", where="resumed_at IS NULL"),)
