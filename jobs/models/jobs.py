"""Jobs, and the attempts at their stages.

A job's stages run one after another, so the job's row has the lease of the running attempt. A job has a
lease exactly while one of its attempts is running, also if the job itself has ended. Attempts are added
and ended, and never change after that: they are the job's history.
"""

from __future__ import annotations

import datetime as dt
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column, relationship

from jobs.column_types import ExactJSON, ExactText
from jobs.database_clock import utcnow
from jobs.enums import AttemptStatus, Status
from jobs.models.base import ROW_ID, Base, enum, partial
from jobs.models.erasures import Erasure
from jobs.models.reviews import Review
from jobs.models.workers import Worker
from jobs.pipeline import Role


def text_id(attempt_id: int, started_at: dt.datetime) -> str:
    """Return what the text of an attempt is called while it is generated.

    Ids alone would repeat if the database is set back, and Redis still has the texts of those that it has lost.
    """
    return f"{attempt_id}@{started_at.timestamp():.6f}"


class Job(Base):
    """A question, and its way through the pipeline."""

    __tablename__ = "jobs"

    id: Mapped[str] = mapped_column(sa.String(40), primary_key=True)
    #: Who may read and cancel the job: the owner of an API key, or `ANONYMOUS`.
    owner: Mapped[str] = mapped_column(sa.String(40))
    #: The API key that the job was submitted with, if any. It is no foreign key: keys are never deleted,
    #: and PostgreSQL would lock the key's row for each job.
    key_id: Mapped[str | None] = mapped_column(sa.String(40))
    status: Mapped[Status] = mapped_column(enum(Status, "status"), default=Status.QUEUED)

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
    #: The strings that end the text of the last stage; null for none.
    stop: Mapped[list[str] | None] = mapped_column(ExactJSON)
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
    #: The span that the job is below, and what tracing systems pass on with it (`jobs.trace_context`).
    traceparent: Mapped[str | None] = mapped_column(sa.String(55))
    tracestate: Mapped[str | None] = mapped_column(sa.String(512))

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
    #: For each time that the job had failed and was retried: when (``at``), the end before (``finished_at``
    #: and the error's ``code``), and the index of its entry in the log or null (``entry``).
    retries: Mapped[list[dict[str, Any]]] = mapped_column(ExactJSON, default=list)
    #: When it was last retried.
    retried_at: Mapped[dt.datetime | None]
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
    #: The secret salt of the texts' hashes in its record (`jobs.tlog.salted`).
    log_salt: Mapped[bytes | None]
    #: Instead of it once a text was erased: the salts of the texts that are left, in hexadecimal.
    log_salts: Mapped[dict[str, str] | None] = mapped_column(ExactJSON)
    #: The erased texts: the hash of each by its JSON pointer into the history. Their columns are empty.
    erased: Mapped[dict[str, str] | None] = mapped_column(ExactJSON)
    #: When texts were last erased.
    erased_at: Mapped[dt.datetime | None]

    #: The rating of the regeneration in the last review that has one.
    rating: Mapped[int | None]
    #: Of a job that was imported: the proof that it came with, a tlog-proof of the log where it ended
    #: (`jobs.use_cases.importing`). Null for all others.
    origin_proof: Mapped[str | None] = mapped_column(sa.Text)
    #: The number of changes that the search index does not have: 1 for a job that it does not have at all.
    unindexed: Mapped[int] = mapped_column(default=1, server_default="1")
    #: What the statistics have of the job (`jobs.statistics.counted.Counted`); null for nothing.
    counted: Mapped[dict[str, Any] | None] = mapped_column(
        ExactJSON, deferred=True, deferred_raiseload=True
    )

    attempts: Mapped[list[Attempt]] = relationship(
        order_by="Attempt.id", back_populates="job", passive_deletes=True
    )
    # Most readers need neither, so they are loaded on request only.
    reviews: Mapped[list[Review]] = relationship(
        order_by=Review.number, passive_deletes=True, lazy="raise"
    )
    erasures: Mapped[list[Erasure]] = relationship(
        order_by=Erasure.id, passive_deletes=True, lazy="raise"
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
        partial("ix_jobs_queued", "priority", "published_at", where="status = 'queued'"),
        # Those of an API key, to count them.
        partial(
            "ix_jobs_queued_by_key", "key_id", where="status = 'queued' AND key_id IS NOT NULL"
        ),
        # Those of batches, which do not count.
        partial(
            "ix_jobs_queued_lines", "batch_id", where="status = 'queued' AND batch_id IS NOT NULL"
        ),
        partial("ix_jobs_in_progress", "deadline_at", where="status = 'in_progress'"),
        partial(
            "ix_jobs_outbox",
            "created_at",
            where="published_at IS NULL AND status IN ('queued', 'in_progress')",
        ),
        # Leases: of a worker, and expired ones.
        partial("ix_jobs_leased", "worker_id", "lease_expires_at", where="worker_id IS NOT NULL"),
        # Ended jobs: those that ended last, and those that are old enough to delete.
        partial("ix_jobs_finished_at", "finished_at", where="finished_at IS NOT NULL"),
        # Ended jobs that are not in the log yet, and whose attempts have ended.
        partial(
            "ix_jobs_unsealed",
            "finished_at",
            where="finished_at IS NOT NULL AND worker_id IS NULL AND log_index IS NULL",
        ),
        # All owners' jobs of a rating, and an owner's.
        partial("ix_jobs_rating", "rating", "created_at", "id", where="rating IS NOT NULL"),
        partial(
            "ix_jobs_owner_rating",
            "owner",
            "rating",
            "created_at",
            "id",
            where="rating IS NOT NULL",
        ),
        # The replays of a job.
        partial(
            "ix_jobs_replay_of", "replay_of", "created_at", "id", where="replay_of IS NOT NULL"
        ),
        # Those that the search index does not have as they are, or that are not counted.
        partial(
            "ix_jobs_unindexed",
            "finished_at",
            where="finished_at IS NOT NULL AND worker_id IS NULL AND (unindexed > 0 OR counted IS NULL)",
        ),
    )

    @property
    def context(self) -> str:
        """What the prompts have of the conversation: ``question`` or ``turns``."""
        return "question" if self.turns is None else "turns"

    @property
    def critique_rating(self) -> int | None:
        """The rating of the critique in the last review that has one; `reviews` are loaded."""
        given = [each.critique for each in self.reviews if each.critique is not None]
        return given[-1] if given else None

    @property
    def has_lost_texts(self) -> bool:
        """Whether a text of the job itself was erased, and not only one of its reviews."""
        return any(not pointer.startswith("/reviews/") for pointer in self.erased or ())

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

    id: Mapped[int] = mapped_column(ROW_ID, primary_key=True)
    job_id: Mapped[str] = mapped_column(sa.ForeignKey("jobs.id", ondelete="CASCADE"))
    stage_index: Mapped[int]
    role: Mapped[Role] = mapped_column(enum(Role, "role"))
    round: Mapped[int]
    #: The job's run.
    run: Mapped[int] = mapped_column(default=1)
    #: 1 for the first attempt at this stage; it continues over all runs.
    number: Mapped[int]
    #: The fencing token of its lease.
    lease_token: Mapped[int]
    worker_id: Mapped[str] = mapped_column(sa.ForeignKey("workers.id"), index=True)
    #: The address of the server that generated the text, if the worker's engine is elsewhere and it is known.
    server: Mapped[str | None] = mapped_column(sa.Text)
    status: Mapped[AttemptStatus] = mapped_column(enum(AttemptStatus, "status"))

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

    @property
    def text_id(self) -> str:
        """What its text is called while it is generated."""
        return text_id(self.id, self.started_at)

    @property
    def is_whole(self) -> bool:
        """Whether its text ended at a stop token or a stop string, and was not cut."""
        return self.status is AttemptStatus.FINISHED and self.finish_reason in (
            "stop",
            "stop_string",
        )
