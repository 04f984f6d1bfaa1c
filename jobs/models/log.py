"""The transparency log."""

from __future__ import annotations

import datetime as dt
from enum import StrEnum

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from jobs.column_types import utcnow
from jobs.models.base import ROW_ID, Base, enum


class LogKind(StrEnum):
    """What an entry of the log records."""

    #: The end of a job.
    JOB = "job"
    #: The deletion of a job that has an entry.
    DELETION = "deletion"
    #: A review of a job that has an entry.
    REVIEW = "review"
    #: The erasure of texts of a job that has an entry.
    ERASURE = "erasure"


class LogState(Base):
    """The log: one row, which a transaction that appends to the log locks."""

    __tablename__ = "log_state"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    #: The log's name in checkpoints; null until the first entry.
    origin: Mapped[str | None] = mapped_column(sa.Text)
    #: The number of entries.
    size: Mapped[int] = mapped_column(sa.BigInteger)


class LogKey(Base):
    """A key that signs or signed the log's checkpoints. The newest one signs."""

    __tablename__ = "log_keys"

    id: Mapped[int] = mapped_column(primary_key=True)
    #: The verifier key (`jobs.tlog.note`).
    verifier: Mapped[str] = mapped_column(sa.Text, unique=True)
    #: The private key, if it is kept here: `HELIXQ_LOG_KEY` is not, and neither are old ones.
    private: Mapped[bytes | None]
    created_at: Mapped[dt.datetime] = mapped_column(default=utcnow())


class LogEntry(Base):
    """An entry of the log. It is never changed or deleted."""

    __tablename__ = "log_entries"

    #: Its place in the log, from 0 on.
    entry_index: Mapped[int] = mapped_column(ROW_ID, primary_key=True, autoincrement=False)
    kind: Mapped[LogKind] = mapped_column(enum(LogKind, "kind"))
    #: The job that it is about. It is no foreign key: the job may be deleted.
    job_id: Mapped[str] = mapped_column(sa.String(40), index=True)
    #: The entry as the log has it (`jobs.tlog.entry`).
    entry: Mapped[bytes]


class LogTile(Base):
    """A tile of the log's tree (`jobs.tlog.tiles`), with as many hashes as it has so far."""

    __tablename__ = "log_tiles"

    level: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    tile_index: Mapped[int] = mapped_column(sa.BigInteger, primary_key=True, autoincrement=False)
    hashes: Mapped[bytes]


class LogCheckpoint(Base):
    """A checkpoint: the signed root of the log's tree."""

    __tablename__ = "log_checkpoints"

    size: Mapped[int] = mapped_column(ROW_ID, primary_key=True, autoincrement=False)
    #: The signed note.
    note: Mapped[str] = mapped_column(sa.Text)
    created_at: Mapped[dt.datetime] = mapped_column(default=utcnow())


class LogDeletion(Base):
    """The deletion of a job that has an entry, until the log has an entry of it."""

    __tablename__ = "log_deletions"

    #: Of the job's entry.
    entry_index: Mapped[int] = mapped_column(ROW_ID, primary_key=True, autoincrement=False)
    job_id: Mapped[str] = mapped_column(sa.String(40))
