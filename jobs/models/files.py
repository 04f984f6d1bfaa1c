"""Files and their content."""

from __future__ import annotations

import datetime as dt

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from jobs.column_types import ExactText
from jobs.database_clock import utcnow
from jobs.enums import FilePurpose, FileState
from jobs.models.base import Base, enum, partial


class File(Base):
    """A file of a client, or of a batch. Its content is in `FileChunk`."""

    __tablename__ = "files"

    id: Mapped[str] = mapped_column(sa.String(40), primary_key=True)
    owner: Mapped[str] = mapped_column(sa.String(40))
    purpose: Mapped[FilePurpose] = mapped_column(enum(FilePurpose, "purpose"))
    state: Mapped[FileState] = mapped_column(enum(FileState, "state"))
    name: Mapped[str] = mapped_column(ExactText)
    #: The number of bytes so far.
    size: Mapped[int] = mapped_column(sa.BigInteger, default=0)
    created_at: Mapped[dt.datetime] = mapped_column(default=utcnow())
    expires_at: Mapped[dt.datetime | None]
    #: The client's ``Idempotency-Key``, and the SHA-256 of the request that came with it. A file that is deleted or
    #: has expired has none.
    idempotency_key: Mapped[str | None] = mapped_column(sa.String(255))
    request_digest: Mapped[str | None] = mapped_column(sa.String(64))

    __table_args__ = (
        sa.Index(None, "owner", "created_at", "id"),
        # What the sweep of files looks at.
        partial("ix_files_expires_at", "expires_at", where="expires_at IS NOT NULL"),
        partial("ix_files_unfinished", "state", "created_at", where="state <> 'processed'"),
        partial(
            "ix_files_idempotency_key",
            "owner",
            "idempotency_key",
            where="idempotency_key IS NOT NULL",
            unique=True,
        ),
        # What retention looks at.
        sa.Index("ix_files_created_at", "created_at"),
    )


class FileChunk(Base):
    """A piece of a file's content."""

    __tablename__ = "file_chunks"

    file_id: Mapped[str] = mapped_column(sa.ForeignKey("files.id"), primary_key=True)
    #: The number of bytes before it.
    start: Mapped[int] = mapped_column(sa.BigInteger, primary_key=True)
    data: Mapped[bytes]
