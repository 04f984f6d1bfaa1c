"""The tables: jobs, the attempts at their stages, the workers; API keys; files and batches; webhooks; the log.

A job's stages run one after another, so the job's row has the lease of the running attempt. A job has a
lease exactly while one of its attempts is running, also if the job itself has ended. Attempts are added
and ended, and never change after that: they are the job's history.
"""

from __future__ import annotations

import datetime as dt
from enum import StrEnum
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from jobs.column_types import ExactJSON, ExactText, UTCDateTime, utcnow
from jobs.pipeline import Role


class Status(StrEnum):
    """A job's status, as the API shows it."""

    QUEUED = "queued"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    #: All stages ran, but the final answer was cut at its token limit.
    INCOMPLETE = "incomplete"

    @property
    def final(self) -> bool:
        return self not in OPEN


#: The owner of jobs that were accepted without an API key.
ANONYMOUS = "anonymous"

OPEN = (Status.QUEUED, Status.IN_PROGRESS)


class AttemptStatus(StrEnum):
    """The status of an attempt."""

    RUNNING = "running"
    FINISHED = "finished"
    #: The stage raised an error or exceeded the job's deadline.
    FAILED = "failed"
    #: The worker stopped responding.
    LOST = "lost"
    #: The worker shut down and released the stage.
    RELEASED = "released"
    #: The job was cancelled, and the worker stopped, or stopped responding.
    CANCELLED = "cancelled"


class WorkerState(StrEnum):
    """The state of a worker."""

    LOADING = "loading"
    READY = "ready"
    STOPPED = "stopped"


class FileState(StrEnum):
    """The state of a file. Clients see those that are `PROCESSED`."""

    #: A client is sending it.
    UPLOADING = "uploading"
    #: A batch that has not ended is writing it.
    WRITING = "writing"
    PROCESSED = "processed"
    #: Nobody sees it any more; its content is deleted a little at a time.
    DELETED = "deleted"


class FilePurpose(StrEnum):
    """What a file is for."""

    #: The requests of a batch.
    BATCH = "batch"
    #: The answers or the errors of a batch.
    BATCH_OUTPUT = "batch_output"


class BatchStatus(StrEnum):
    """A batch's status, as the API shows it."""

    VALIDATING = "validating"
    FAILED = "failed"
    IN_PROGRESS = "in_progress"
    #: The completion window is over: the lines that are left become errors.
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    EXPIRED = "expired"
    #: A client cancelled it: the lines that are left become errors.
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


class DeliveryStatus(StrEnum):
    """The status of the delivery of an event to a webhook endpoint."""

    #: To be sent when `WebhookDelivery.next_attempt_at` has come.
    PENDING = "pending"
    #: A process is sending it, until then at most.
    SENDING = "sending"
    DELIVERED = "delivered"
    #: Given up.
    FAILED = "failed"


class LogKind(StrEnum):
    """What an entry of the log records."""

    #: The end of a job.
    JOB = "job"
    #: The deletion of a job that has an entry.
    DELETION = "deletion"


class Scope(StrEnum):
    """What an API key allows."""

    #: Submit questions; read and cancel the owner's jobs.
    ASK = "ask"
    #: Read the histories of all owners.
    AUDIT = "audit"
    #: Everything, with the jobs of all owners.
    ADMIN = "admin"


class Base(DeclarativeBase):
    metadata = sa.MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012 (SQLAlchemy's way to declare it)
        dt.datetime: UTCDateTime,
        dict[str, Any]: sa.JSON().with_variant(JSONB, "postgresql"),
        dict[str, str]: sa.JSON().with_variant(JSONB, "postgresql"),
        list[str]: sa.JSON().with_variant(JSONB, "postgresql"),
        list[int]: sa.JSON().with_variant(JSONB, "postgresql"),
        list[dict[str, Any]]: sa.JSON().with_variant(JSONB, "postgresql"),
    }


def _enum(kind: type[StrEnum], name: str) -> sa.Enum:
    """Store an enum's values as text with a check, the same on both databases."""
    return sa.Enum(
        kind,
        name=name,
        native_enum=False,
        create_constraint=True,
        length=16,
        values_callable=lambda members: [member.value for member in members],
    )


def _partial(name: str, *columns: str, where: str) -> sa.Index:
    """Return a partial index. SQLite uses it only for statements that contain ``where`` literally."""
    condition = sa.text(where)
    return sa.Index(name, *columns, sqlite_where=condition, postgresql_where=condition)


_ROW_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")


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
    state: Mapped[WorkerState] = mapped_column(_enum(WorkerState, "state"))
    started_at: Mapped[dt.datetime] = mapped_column(default=utcnow(), index=True)
    seen_at: Mapped[dt.datetime] = mapped_column(default=utcnow(), index=True)
    stopped_at: Mapped[dt.datetime | None]
    #: When it was first ready; null if it never was.
    ready_at: Mapped[dt.datetime | None]
    #: Base, adapters (name and content digest each), engine, device, dtype, software versions.
    runtime: Mapped[dict[str, Any]]
    #: SHA-256 over what texts depend on (`jobs.use_cases.workers.Runtime.model`).
    model: Mapped[str] = mapped_column(sa.String(64))
    #: The maximum number of tokens of prompt and output together.
    context: Mapped[int]
    tokenizer_digest: Mapped[str] = mapped_column(sa.ForeignKey("tokenizers.digest"))

    __table_args__ = (
        # Workers that have not stopped: the newest, and that of a process.
        _partial("ix_workers_unstopped", "started_at", where="stopped_at IS NULL"),
        _partial("ix_workers_process", "host", "pid", "started_at", where="stopped_at IS NULL"),
    )


class ApiKey(Base):
    """An API key. Its row stays when it is revoked: the histories of jobs name it."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(sa.String(40), primary_key=True)
    #: SHA-256 of the secret (`jobs.use_cases.keys`).
    digest: Mapped[str] = mapped_column(sa.String(64), unique=True)
    #: The first characters of the secret, by which people recognise it.
    hint: Mapped[str] = mapped_column(sa.String(16))
    name: Mapped[str] = mapped_column(sa.Text)
    #: Owns the jobs that are submitted with it (`Job.owner`).
    owner: Mapped[str] = mapped_column(sa.String(40))
    #: The values of `Scope`.
    scopes: Mapped[list[str]]
    #: The maximum number of queued jobs that were submitted with it; null for no maximum.
    max_queued: Mapped[int | None]
    #: The maximum number of requests with it; null for no maximum.
    requests_per_minute: Mapped[int | None]
    created_at: Mapped[dt.datetime] = mapped_column(default=utcnow())
    #: Written at most once a minute.
    last_used_at: Mapped[dt.datetime | None]
    expires_at: Mapped[dt.datetime | None]
    revoked_at: Mapped[dt.datetime | None]


class LoginSession(Base):
    """A browser in which somebody has logged in with an API key."""

    __tablename__ = "login_sessions"

    #: SHA-256 of the secret in the browser's cookie.
    digest: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    key_id: Mapped[str] = mapped_column(sa.ForeignKey("api_keys.id"))
    created_at: Mapped[dt.datetime] = mapped_column(default=utcnow())
    expires_at: Mapped[dt.datetime] = mapped_column(index=True)


class Job(Base):
    """A question, and its way through the pipeline."""

    __tablename__ = "jobs"

    id: Mapped[str] = mapped_column(sa.String(40), primary_key=True)
    #: Who may read and cancel the job: the owner of an API key, or `ANONYMOUS`.
    owner: Mapped[str] = mapped_column(sa.String(40))
    #: The API key that the job was submitted with, if any. It is no foreign key: keys are never deleted,
    #: and PostgreSQL would lock the key's row for each job.
    key_id: Mapped[str | None] = mapped_column(sa.String(40))
    status: Mapped[Status] = mapped_column(_enum(Status, "status"), default=Status.QUEUED)

    question: Mapped[str] = mapped_column(ExactText)
    system: Mapped[str] = mapped_column(ExactText)
    #: The messages of the request as they came; null if its input was a text. They may be long and most
    #: readers do not need them, so they are loaded on request only.
    input_items: Mapped[list[dict[str, Any]] | None] = mapped_column(
        ExactJSON, deferred=True, deferred_raiseload=True
    )
    #: The turns before the question that are in the prompts: ``{"role", "text"}`` each. Null if the
    #: context is the question alone.
    turns: Mapped[list[dict[str, str]] | None] = mapped_column(ExactJSON)
    #: The response that the conversation continues.
    previous_response_id: Mapped[str | None] = mapped_column(sa.String(40))
    #: Parameters that change nothing here, and that responses repeat (`jobs.protocol.options`).
    options: Mapped[dict[str, Any] | None] = mapped_column(ExactJSON)
    temperature: Mapped[float]
    top_k: Mapped[int]
    top_p: Mapped[float]
    max_output_tokens: Mapped[int]
    seed: Mapped[int] = mapped_column(sa.BigInteger)
    rounds: Mapped[int]
    #: 0 to 9; higher runs first.
    priority: Mapped[int]
    background: Mapped[bool]
    #: The client's key-value pairs. SQLAlchemy reserves the attribute ``metadata``.
    metadata_: Mapped[dict[str, str]] = mapped_column("metadata")
    #: The client's ``Idempotency-Key``, and the SHA-256 of the request that came with it.
    idempotency_key: Mapped[str | None] = mapped_column(sa.String(255))
    request_digest: Mapped[str | None] = mapped_column(sa.String(64))
    #: The batch that the job is a line of, if any, and the client's name for the line. It is no foreign
    #: key: jobs and batches are deleted each at their own time.
    batch_id: Mapped[str | None] = mapped_column(sa.String(40))
    custom_id: Mapped[str | None] = mapped_column(ExactText)
    #: The job that this one replays. It is no foreign key: that job may be deleted.
    replay_of: Mapped[str | None] = mapped_column(sa.String(40))

    created_at: Mapped[dt.datetime] = mapped_column(default=utcnow())
    #: When the first stage first started.
    started_at: Mapped[dt.datetime | None]
    finished_at: Mapped[dt.datetime | None]
    deadline_at: Mapped[dt.datetime | None]

    #: The model that runs all stages of the run (`Worker.model`); null until one is claimed.
    model: Mapped[str | None] = mapped_column(sa.String(64))
    #: The number of the current run: 1, and one more each time the job was restarted because no worker
    #: had its model.
    run: Mapped[int] = mapped_column(default=1)
    #: For each run but the first: its number (``run``), when it began (``at``), the ``model`` of the run
    #: before, and the ``reason``.
    restarts: Mapped[list[dict[str, Any]]] = mapped_column(default=list)
    #: The first stage of the run that is not finished; the number of stages once all are.
    stage_index: Mapped[int] = mapped_column(default=0)
    #: When that stage became ready to run.
    ready_at: Mapped[dt.datetime] = mapped_column(default=utcnow())
    #: When a message for it was last published, or was about to be; null for the outbox.
    published_at: Mapped[dt.datetime | None] = mapped_column(default=utcnow())

    #: The number of claims so far: the fencing token of the last one.
    lease_token: Mapped[int] = mapped_column(default=0)
    #: Null while no attempt is running, as is ``worker_id``.
    lease_expires_at: Mapped[dt.datetime | None]
    worker_id: Mapped[str | None] = mapped_column(sa.ForeignKey("workers.id"))

    error_code: Mapped[str | None] = mapped_column(sa.String(64))
    error_message: Mapped[str | None] = mapped_column(ExactText)

    #: The job's entry in the log; null until it is sealed (`jobs.use_cases.sealing`).
    log_index: Mapped[int | None] = mapped_column(sa.BigInteger)
    #: The secret salt of the texts' hashes in its record (`jobs.tlog.entry`).
    log_salt: Mapped[bytes | None]

    attempts: Mapped[list[Attempt]] = relationship(
        order_by="Attempt.id", back_populates="job", passive_deletes=True
    )

    __table_args__ = (
        # The lists of an owner and of all owners, newest first.
        sa.Index(None, "owner", "created_at", "id"),
        sa.Index("ix_jobs_created_at_id", "created_at", "id"),
        # All owners' jobs of one status.
        sa.Index("ix_jobs_status_created_at_id", "status", "created_at", "id"),
        # An owner's jobs of one status.
        sa.Index(None, "owner", "status", "created_at", "id"),
        # Each owner chooses its own keys.
        sa.UniqueConstraint("owner", "idempotency_key"),
        # Queued jobs: to count them, and to find those whose messages were lost.
        _partial("ix_jobs_queued", "priority", "published_at", where="status = 'queued'"),
        # Those of an API key, to count them.
        _partial(
            "ix_jobs_queued_by_key", "key_id", where="status = 'queued' AND key_id IS NOT NULL"
        ),
        # Those of batches, which do not count.
        _partial(
            "ix_jobs_queued_lines", "batch_id", where="status = 'queued' AND batch_id IS NOT NULL"
        ),
        _partial("ix_jobs_in_progress", "deadline_at", where="status = 'in_progress'"),
        _partial(
            "ix_jobs_outbox",
            "created_at",
            where="published_at IS NULL AND status IN ('queued', 'in_progress')",
        ),
        # Leases: of a worker, and expired ones.
        _partial("ix_jobs_leased", "worker_id", "lease_expires_at", where="worker_id IS NOT NULL"),
        # Ended jobs: those that ended last, and those that are old enough to delete.
        _partial("ix_jobs_finished_at", "finished_at", where="finished_at IS NOT NULL"),
        # Ended jobs that are not in the log yet, and whose attempts have ended.
        _partial(
            "ix_jobs_unsealed",
            "finished_at",
            where="finished_at IS NOT NULL AND worker_id IS NULL AND log_index IS NULL",
        ),
    )

    @property
    def context(self) -> str:
        """What the prompts have of the conversation: ``question`` or ``turns``."""
        return "question" if self.turns is None else "turns"

    @property
    def awaits_partial_text(self) -> bool:
        """Whether the job has ended, and a worker may still hand in the text of the interrupted stage."""
        return self.status.final and any(
            attempt.status is AttemptStatus.RUNNING for attempt in self.attempts
        )

    @property
    def finished(self) -> list[Attempt]:
        """The finished attempts of the current run, in the order of its stages."""
        done = [a for a in self.of_run(self.run) if a.status is AttemptStatus.FINISHED]
        return sorted(done, key=lambda attempt: attempt.stage_index)

    def of_run(self, run: int) -> list[Attempt]:
        """Return a run's attempts, in the order in which they started."""
        return [a for a in self.attempts if a.run == run]


class Attempt(Base):
    """One attempt at a stage: its input, its output and its circumstances."""

    __tablename__ = "attempts"

    id: Mapped[int] = mapped_column(_ROW_ID, primary_key=True)
    job_id: Mapped[str] = mapped_column(sa.ForeignKey("jobs.id", ondelete="CASCADE"))
    stage_index: Mapped[int]
    role: Mapped[Role] = mapped_column(_enum(Role, "role"))
    round: Mapped[int]
    #: The job's run.
    run: Mapped[int] = mapped_column(default=1)
    #: 1 for the first attempt at this stage; it continues over all runs.
    number: Mapped[int]
    #: The fencing token of its lease.
    lease_token: Mapped[int]
    worker_id: Mapped[str] = mapped_column(sa.ForeignKey("workers.id"), index=True)
    status: Mapped[AttemptStatus] = mapped_column(_enum(AttemptStatus, "status"))

    #: The exact text that the model was given.
    prompt: Mapped[str] = mapped_column(ExactText)
    #: The exact text that it generated; of an interrupted attempt, what is known of it.
    output: Mapped[str | None] = mapped_column(ExactText)
    #: Characters of each streamed piece of ``output``, in order; they add up to its length.
    delta_lengths: Mapped[list[int] | None]

    temperature: Mapped[float]
    top_k: Mapped[int]
    top_p: Mapped[float]
    #: The limit that applied: the job's, or less if the context had less room.
    max_output_tokens: Mapped[int]
    #: The stage's own seed, derived from the job's.
    seed: Mapped[int] = mapped_column(sa.BigInteger)

    prompt_tokens: Mapped[int | None]
    output_tokens: Mapped[int | None]
    finish_reason: Mapped[str | None] = mapped_column(sa.String(16))

    queued_at: Mapped[dt.datetime]
    started_at: Mapped[dt.datetime]
    first_token_at: Mapped[dt.datetime | None]
    finished_at: Mapped[dt.datetime | None]
    error: Mapped[str | None] = mapped_column(ExactText)

    job: Mapped[Job] = relationship(back_populates="attempts")
    worker: Mapped[Worker] = relationship()

    __table_args__ = (sa.UniqueConstraint("job_id", "stage_index", "number"),)


class File(Base):
    """A file of a client, or of a batch. Its content is in `FileChunk`."""

    __tablename__ = "files"

    id: Mapped[str] = mapped_column(sa.String(40), primary_key=True)
    owner: Mapped[str] = mapped_column(sa.String(40))
    purpose: Mapped[FilePurpose] = mapped_column(_enum(FilePurpose, "purpose"))
    state: Mapped[FileState] = mapped_column(_enum(FileState, "state"))
    name: Mapped[str] = mapped_column(ExactText)
    #: The number of bytes so far.
    size: Mapped[int] = mapped_column(sa.BigInteger, default=0)
    created_at: Mapped[dt.datetime] = mapped_column(default=utcnow())
    expires_at: Mapped[dt.datetime | None]

    __table_args__ = (
        sa.Index(None, "owner", "created_at", "id"),
        # What the sweep of files looks at.
        _partial("ix_files_expires_at", "expires_at", where="expires_at IS NOT NULL"),
        _partial("ix_files_unfinished", "state", "created_at", where="state <> 'processed'"),
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


class Batch(Base):
    """A file of requests, and how far they are answered."""

    __tablename__ = "batches"

    id: Mapped[str] = mapped_column(sa.String(40), primary_key=True)
    owner: Mapped[str] = mapped_column(sa.String(40))
    #: The API key that the batch was created with, as in `Job.key_id`.
    key_id: Mapped[str | None] = mapped_column(sa.String(40))
    status: Mapped[BatchStatus] = mapped_column(
        _enum(BatchStatus, "status"), default=BatchStatus.VALIDATING
    )
    endpoint: Mapped[str] = mapped_column(sa.String(40))
    #: What of a chat's messages is asked where a line does not say so: the setting of the web that
    #: accepted the batch.
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

    #: How far the input file is validated: the next line begins after so many bytes and lines.
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
        _partial("ix_batches_open", "created_at", where="ended_at IS NULL"),
        _partial("ix_batches_ended_at", "ended_at", where="ended_at IS NOT NULL"),
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
        _partial("ix_batch_lines_submitted", "batch_id", "number", where="job_id IS NOT NULL"),
    )


class WebhookEndpoint(Base):
    """A URL that is told about events of an owner's jobs."""

    __tablename__ = "webhook_endpoints"

    id: Mapped[str] = mapped_column(sa.String(40), primary_key=True)
    owner: Mapped[str] = mapped_column(sa.String(40), index=True)
    name: Mapped[str] = mapped_column(sa.Text)
    url: Mapped[str] = mapped_column(sa.Text)
    event_types: Mapped[list[str]]
    #: Signs its webhooks (`jobs.webhooks.signing`), so it cannot be stored as a hash.
    secret: Mapped[str] = mapped_column(sa.String(128))
    #: Signs them too, until it expires.
    previous_secret: Mapped[str | None] = mapped_column(sa.String(128))
    previous_secret_expires_at: Mapped[dt.datetime | None]
    created_at: Mapped[dt.datetime] = mapped_column(default=utcnow())
    updated_at: Mapped[dt.datetime] = mapped_column(default=utcnow())
    #: Set if the receiver replied that it is gone: nothing is sent until the endpoint is updated.
    disabled_at: Mapped[dt.datetime | None]


class WebhookDelivery(Base):
    """An event that is to be sent to an endpoint, or was. The rows are an outbox."""

    __tablename__ = "webhook_deliveries"

    id: Mapped[str] = mapped_column(sa.String(40), primary_key=True)
    endpoint_id: Mapped[str] = mapped_column(
        sa.ForeignKey("webhook_endpoints.id", ondelete="CASCADE")
    )
    #: The same for all endpoints and all attempts: the header ``webhook-id``.
    event_id: Mapped[str] = mapped_column(sa.String(40))
    event_type: Mapped[str] = mapped_column(sa.String(64))
    #: What the event is about, such as a job. It is no foreign key: it may be of several tables.
    object_id: Mapped[str] = mapped_column(sa.String(64), index=True)
    created_at: Mapped[dt.datetime] = mapped_column(default=utcnow())
    status: Mapped[DeliveryStatus] = mapped_column(_enum(DeliveryStatus, "status"))
    #: When it is to be sent next; while a process sends it, when that process counts as dead. Null once
    #: it was delivered or given up.
    next_attempt_at: Mapped[dt.datetime | None]
    give_up_at: Mapped[dt.datetime]
    finished_at: Mapped[dt.datetime | None]
    #: The number of times that a process took it: the fencing token of the last one.
    claims: Mapped[int] = mapped_column(default=0)
    #: The number of failed attempts since the first one, or since it was last asked for again.
    failures: Mapped[int] = mapped_column(default=0)
    #: The last attempts: ``at``, ``status_code``, ``error``, ``duration`` in seconds.
    attempts: Mapped[list[dict[str, Any]]] = mapped_column(default=list)

    __table_args__ = (
        # What is due, for each endpoint.
        _partial(
            "ix_webhook_deliveries_due",
            "endpoint_id",
            "next_attempt_at",
            where="next_attempt_at IS NOT NULL",
        ),
        # The lists of an endpoint, newest first: all, and those of one status.
        sa.Index(None, "endpoint_id", "created_at", "id"),
        sa.Index("ix_webhook_deliveries_status", "endpoint_id", "status", "created_at", "id"),
    )


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
    entry_index: Mapped[int] = mapped_column(_ROW_ID, primary_key=True, autoincrement=False)
    kind: Mapped[LogKind] = mapped_column(_enum(LogKind, "kind"))
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

    size: Mapped[int] = mapped_column(_ROW_ID, primary_key=True, autoincrement=False)
    #: The signed note.
    note: Mapped[str] = mapped_column(sa.Text)
    created_at: Mapped[dt.datetime] = mapped_column(default=utcnow())


class LogDeletion(Base):
    """The deletion of a job that has an entry, until the log has an entry of it."""

    __tablename__ = "log_deletions"

    #: Of the job's entry.
    entry_index: Mapped[int] = mapped_column(_ROW_ID, primary_key=True, autoincrement=False)
    job_id: Mapped[str] = mapped_column(sa.String(40))
