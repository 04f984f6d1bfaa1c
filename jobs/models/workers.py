"""Workers, and the tokenizers that they use."""

from __future__ import annotations

import datetime as dt
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from jobs.database_clock import utcnow
from jobs.enums import WorkerState
from jobs.models.base import Base, enum, partial


class Tokenizer(Base):
    """A tokenizer that a worker uses, for the web to count tokens without the model."""

    __tablename__ = "tokenizers"

    #: SHA-256 of the uncompressed ``tokenizer.json``.
    digest: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    #: ``tokenizer.json``, zlib-compressed.
    body: Mapped[bytes]


class Worker(Base):
    """A worker process: what it serves, and when it was last alive."""

    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(sa.String(40), primary_key=True)
    host: Mapped[str] = mapped_column(sa.Text)
    pid: Mapped[int]
    state: Mapped[WorkerState] = mapped_column(enum(WorkerState, "state"))
    started_at: Mapped[dt.datetime] = mapped_column(default=utcnow(), index=True)
    seen_at: Mapped[dt.datetime] = mapped_column(default=utcnow(), index=True)
    stopped_at: Mapped[dt.datetime | None]
    #: When it was first ready; null if it never was.
    ready_at: Mapped[dt.datetime | None]
    #: Base, adapters (name and content digest each), engine, device, dtype, software versions.
    runtime: Mapped[dict[str, Any]]
    #: What its process and its engine use, as its last heartbeat said (`jobs.protocol.schemas.system.WorkerUsage`).
    usage: Mapped[dict[str, Any] | None]
    #: SHA-256 over what texts depend on (`jobs.use_cases.workers.Runtime.model`).
    model: Mapped[str] = mapped_column(sa.String(64))
    #: The maximum number of tokens of prompt and output together.
    context: Mapped[int]
    tokenizer_digest: Mapped[str] = mapped_column(sa.ForeignKey("tokenizers.digest"))

    __table_args__ = (
        # Workers that have not stopped: the newest, and that of a process.
        partial("ix_workers_unstopped", "started_at", where="stopped_at IS NULL"),
        partial("ix_workers_process", "host", "pid", "started_at", where="stopped_at IS NULL"),
    )
