"""The fixed sets of values that rows, replies and commands share."""

from __future__ import annotations

from enum import StrEnum

#: The owner of jobs that were accepted without an API key.
ANONYMOUS = "anonymous"
#: What a list of jobs is filtered by instead of a rating: nothing, so that it has jobs with and without one; or
#: that there is a rating, whichever it is.
ANY, RATED = 2, 3


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


#: The statuses of jobs that have not ended.
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


class FilePurpose(StrEnum):
    """What a file is for."""

    #: The requests of a batch.
    BATCH = "batch"
    #: The answers or the errors of a batch.
    BATCH_OUTPUT = "batch_output"


class DeliveryStatus(StrEnum):
    """The status of the delivery of an event to a webhook endpoint."""

    #: To be sent when `WebhookDelivery.next_attempt_at` has come.
    PENDING = "pending"
    #: A process is sending it. Another one may send it again once `next_attempt_at` has come.
    SENDING = "sending"
    DELIVERED = "delivered"
    #: Given up.
    FAILED = "failed"


class Scope(StrEnum):
    """What an API key allows."""

    #: Submit questions; read and cancel the owner's jobs.
    ASK = "ask"
    #: Read the histories of all owners.
    AUDIT = "audit"
    #: Everything, with the jobs of all owners.
    ADMIN = "admin"


class Order(StrEnum):
    """The order of a list."""

    NEWEST = "desc"
    OLDEST = "asc"
    RELEVANCE = "relevance"
    #: The largest share of words that the regenerator changed first.
    MOST_CHANGED = "changed"
    #: The longest duration first.
    LONGEST = "duration"

    @property
    def by_age(self) -> bool:
        return self in (Order.NEWEST, Order.OLDEST)


class Shape(StrEnum):
    """What the rows of an export are."""

    #: A row for each job, with everything.
    HISTORY = "history"
    #: A row for each job whose final text differs from its draft.
    PREFERENCE = "preference"
    #: A row for each stage.
    SFT = "sft"
    #: A row for each review.
    REVIEW = "review"


class FileState(StrEnum):
    """The state of a file. Clients see those that are `PROCESSED`."""

    #: A client is sending it.
    UPLOADING = "uploading"
    #: A batch that has not ended is writing it.
    WRITING = "writing"
    PROCESSED = "processed"
    #: Nobody sees it any more; its content is deleted a little at a time.
    DELETED = "deleted"


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


class WorkerState(StrEnum):
    """The state of a worker."""

    LOADING = "loading"
    READY = "ready"
    STOPPED = "stopped"
