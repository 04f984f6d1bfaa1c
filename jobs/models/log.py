"""The transparency log."""

from __future__ import annotations

import datetime as dt

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from jobs.database_clock import utcnow
from jobs.enums import LogKind
from jobs.models.base import ROW_ID, Base, enum


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


class LogWitness(Base):
    """A witness: what it has cosigned, and when it may be asked next."""

    __tablename__ = "log_witnesses"

    #: Name and id of its key (`jobs.tlog.cosignature.Cosigner.label`).
    witness: Mapped[str] = mapped_column(sa.Text, primary_key=True)
    #: The number of entries of the tree that it has cosigned last, as far as is known.
    size: Mapped[int] = mapped_column(sa.BigInteger, default=0)
    #: How often in a row it has not cosigned what it was asked to.
    failures: Mapped[int] = mapped_column(default=0)
    #: Before then nobody asks it: a process is waiting for its reply, or it failed.
    next_at: Mapped[dt.datetime]


class LogCosignature(Base):
    """A cosignature of a checkpoint. Of each witness, those of its newest checkpoints are kept."""

    __tablename__ = "log_cosignatures"

    #: Of the checkpoint.
    size: Mapped[int] = mapped_column(sa.BigInteger, primary_key=True, autoincrement=False)
    witness: Mapped[str] = mapped_column(sa.Text, primary_key=True)
    #: The line that is added to the checkpoint's note.
    line: Mapped[str] = mapped_column(sa.Text)

    __table_args__ = (sa.Index(None, "witness", "size"),)


class TraceReceiver(Base):
    """A receiver of traces, and how far it has the jobs of the log (`jobs.use_cases.tracing`)."""

    __tablename__ = "trace_receivers"

    #: SHA-256 of its address, which may have a password.
    receiver: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    #: The first entry whose job or review it does not have.
    next_index: Mapped[int] = mapped_column(sa.BigInteger)
    #: How often in a row it has not taken what was sent.
    failures: Mapped[int]
    #: Before then nobody sends: a process waits for its reply, or it failed.
    next_at: Mapped[dt.datetime]


class LogDeletion(Base):
    """The deletion of a job that has an entry, until the log has an entry of it."""

    __tablename__ = "log_deletions"

    #: Of the job's entry.
    entry_index: Mapped[int] = mapped_column(ROW_ID, primary_key=True, autoincrement=False)
    job_id: Mapped[str] = mapped_column(sa.String(40))
