"""Batches and their lines."""

from __future__ import annotations

import datetime as dt
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from jobs.column_types import ExactJSON, ExactText
from jobs.database_clock import utcnow
from jobs.enums import BatchStatus
from jobs.models.base import Base, enum, partial


class Batch(Base):
    """A file of requests, and how far they are answered."""

    __tablename__ = "batches"

    id: Mapped[str] = mapped_column(sa.String(40), primary_key=True)
    owner: Mapped[str] = mapped_column(sa.String(40))
    #: The API key that the batch was created with, as in `Job.key_id`.
    key_id: Mapped[str | None] = mapped_column(sa.String(40))
    status: Mapped[BatchStatus] = mapped_column(
        enum(BatchStatus, "status"), default=BatchStatus.VALIDATING
    )
    endpoint: Mapped[str] = mapped_column(sa.String(40))
    #: The default of a line's ``context`` if it is a chat completion: the setting of the web that accepted
    #: the batch.
    chat_context: Mapped[str] = mapped_column(sa.String(16))
    metadata_: Mapped[dict[str, str]] = mapped_column("metadata")
    #: The client's ``Idempotency-Key``, and the SHA-256 of the request that came with it.
    idempotency_key: Mapped[str | None] = mapped_column(sa.String(255))
    request_digest: Mapped[str | None] = mapped_column(sa.String(64))
    #: The files. They are no foreign keys: a client may delete them.
    input_file_id: Mapped[str] = mapped_column(sa.String(40), index=True)
    output_file_id: Mapped[str | None] = mapped_column(sa.String(40))
    error_file_id: Mapped[str | None] = mapped_column(sa.String(40))
    #: Seconds from the end of the batch until its output files expire; null for never.
    output_expires_after: Mapped[int | None]

    created_at: Mapped[dt.datetime] = mapped_column(default=utcnow())
    #: When the completion window ends.
    expires_at: Mapped[dt.datetime]
    in_progress_at: Mapped[dt.datetime | None]
    finalizing_at: Mapped[dt.datetime | None]
    cancelling_at: Mapped[dt.datetime | None]
    #: When it completed, failed, expired or was cancelled.
    ended_at: Mapped[dt.datetime | None]

    #: The numbers of bytes and lines of the input file that are validated.
    validated_bytes: Mapped[int] = mapped_column(sa.BigInteger, default=0)
    validated_lines: Mapped[int] = mapped_column(default=0)
    #: Of the validation: ``code``, ``line``, ``message`` and ``param`` each.
    errors: Mapped[list[dict[str, Any]]] = mapped_column(ExactJSON, default=list)
    #: The number of the last line that was submitted, or became an error instead.
    submitted_line: Mapped[int] = mapped_column(default=0)
    #: Lines that are requests, and those of them in the output and in the error file.
    total: Mapped[int] = mapped_column(default=0)
    completed: Mapped[int] = mapped_column(default=0)
    failed: Mapped[int] = mapped_column(default=0)
    #: Tokens of the completed lines.
    input_tokens: Mapped[int] = mapped_column(sa.BigInteger, default=0)
    output_tokens: Mapped[int] = mapped_column(sa.BigInteger, default=0)
    reasoning_tokens: Mapped[int] = mapped_column(sa.BigInteger, default=0)

    #: The process that works on the batch, and until when no other does.
    runner: Mapped[str | None] = mapped_column(sa.String(40))
    leased_until: Mapped[dt.datetime | None]

    __table_args__ = (
        sa.Index(None, "owner", "created_at", "id"),
        sa.UniqueConstraint("owner", "idempotency_key"),
        partial("ix_batches_open", "created_at", where="ended_at IS NULL"),
        partial("ix_batches_ended_at", "ended_at", where="ended_at IS NOT NULL"),
    )


class BatchLine(Base):
    """A line of a batch that is not in its output or error file yet."""

    __tablename__ = "batch_lines"

    batch_id: Mapped[str] = mapped_column(sa.ForeignKey("batches.id"), primary_key=True)
    #: Of the line in the input file, from 1 on.
    number: Mapped[int] = mapped_column(primary_key=True)
    custom_id: Mapped[str] = mapped_column(ExactText)
    #: Where the line is in the input file, in bytes.
    start: Mapped[int] = mapped_column(sa.BigInteger)
    length: Mapped[int]
    #: Null until the line is submitted. It is no foreign key: a client may delete the job.
    job_id: Mapped[str | None] = mapped_column(sa.String(40))

    __table_args__ = (
        sa.UniqueConstraint("batch_id", "custom_id"),
        partial("ix_batch_lines_submitted", "batch_id", "number", where="job_id IS NOT NULL"),
    )
