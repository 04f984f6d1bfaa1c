"""What ended jobs are searched and filtered by."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from jobs.models.base import ROW_ID, Base


class SearchDocument(Base):
    """An ended job in the search index.

    The index itself is in SQLite the FTS5 table ``search_index``, which triggers keep up with this table, and in
    PostgreSQL a GIN index over ``terms``.
    """

    __tablename__ = "search_documents"

    #: Sorts as jobs do by `Job.created_at` (`jobs.statements.documents.first_id`).
    id: Mapped[int] = mapped_column(ROW_ID, primary_key=True, autoincrement=False)
    job_id: Mapped[str] = mapped_column(sa.ForeignKey("jobs.id", ondelete="CASCADE"), unique=True)
    #: The most attempts at one stage.
    attempts: Mapped[int]
    #: The share of words that the regenerator changed (`jobs.word_changes`); null without both texts.
    changed: Mapped[float | None]
    #: Seconds from the job's acceptance to its end.
    duration: Mapped[float]
    #: ``adapters``: ``name`` and ``digest`` of each. ``workers``: ``id`` and ``host`` of each. ``critique_rating``: the
    #: last one.
    details: Mapped[dict[str, Any]]
    #: The terms of the index, each once, with a space between them.
    terms: Mapped[str] = mapped_column(sa.Text, deferred=True, deferred_raiseload=True)
    #: The words of question and outputs (`jobs.search.words`), with a space around each.
    words: Mapped[str] = mapped_column(sa.Text, deferred=True, deferred_raiseload=True)
