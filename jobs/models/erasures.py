"""Which texts of jobs were erased."""

from __future__ import annotations

import datetime as dt

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from jobs.column_types import ExactJSON, ExactText
from jobs.database_clock import utcnow
from jobs.models.base import ROW_ID, Base, partial


class Erasure(Base):
    """A request that erased texts of an ended job. `Job.erased` has the hashes of the texts.

    It is never changed, and deleted with the job only; triggers refuse all else.
    """

    __tablename__ = "erasures"

    id: Mapped[int] = mapped_column(ROW_ID, primary_key=True)
    job_id: Mapped[str] = mapped_column(sa.ForeignKey("jobs.id", ondelete="CASCADE"), index=True)
    #: JSON pointers (RFC 6901) into the history, those of copies included.
    texts: Mapped[list[str]] = mapped_column(ExactJSON)
    #: Who asked for it, as in `Review`.
    erased_by: Mapped[str] = mapped_column(ExactText)
    key_id: Mapped[str | None] = mapped_column(sa.String(40))
    created_at: Mapped[dt.datetime] = mapped_column(default=utcnow())
    #: Its entry in the log.
    log_index: Mapped[int | None] = mapped_column(sa.BigInteger)
    #: Of an imported erasure: the proof of its entry in the first log that had it, as in `Review`.
    origin_proof: Mapped[str | None] = mapped_column(sa.Text)

    __table_args__ = (partial("ix_erasures_unsealed", "id", where="log_index IS NULL"),)
