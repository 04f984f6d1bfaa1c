"""Errors that a user can act on."""

from __future__ import annotations


class UserError(Exception):
    """An error whose message is one sentence for the user: what is wrong, and what to do about it."""


class JobNotFoundError(UserError):
    """No job with this id exists for this owner."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"No such job: {job_id!r}.")


#: What may be `after` of a list whose pages have the address of the next one.
NEXT_OR_ID = "the address in `next`, or the id of the last job,"


class CursorError(UserError):
    """A list has no page after this."""

    def __init__(self, after: str, right: str = "the id of the last entry") -> None:
        """
        Args:
            after: what was given.
            right: what of the page before would be right.
        """
        super().__init__(
            f"There is no page after {after!r}: give {right} of the page before. "
            "It may have been deleted."
        )


class StoredFileNotFoundError(UserError):
    """No file with this id exists for this owner."""

    def __init__(self, file_id: str) -> None:
        super().__init__(f"No such file: {file_id!r}.")


class BatchNotFoundError(UserError):
    """No batch with this id exists for this owner."""

    def __init__(self, batch_id: str) -> None:
        super().__init__(f"No such batch: {batch_id!r}.")


class NothingToReplayError(UserError):
    """No stage of the job has finished."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"No stage of {job_id} has finished, so there is nothing to replay.")


class NotRetriableError(UserError):
    """The job cannot go on. The message says why."""

    def __init__(self, job_id: str, reason: str) -> None:
        super().__init__(f"{job_id} cannot be retried: {reason}.")


class NotSealedError(UserError):
    """The job has no entry in the log yet."""

    def __init__(self, job_id: str, *, ended: bool) -> None:
        when = "within seconds" if ended else "once the job has ended"
        super().__init__(f"{job_id} is not in the log yet. It gets its entry {when}.")


class TamperedError(UserError):
    """A record is not the one that the log has. The message names the first that differs."""


class NotEndedError(UserError):
    """The job has not ended, so that there is nothing to review or erase yet."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"{job_id} has not ended yet.")


class LineNotWrittenError(UserError):
    """The answer of a line is about to be written to its batch's output file."""

    def __init__(self, job_id: str) -> None:
        super().__init__(
            f"The answer of {job_id} is about to be written to its batch's file. Retry in a second."
        )


class TextNotFoundError(UserError):
    """A job has no text at a JSON pointer."""

    def __init__(self, job_id: str, pointer: str) -> None:
        super().__init__(
            f"{job_id} has no text at {pointer!r}. Texts are named by JSON pointers into the job's "
            "history, such as `/question` or `/attempts/0/output`."
        )
        self.pointer = pointer


class PartNotFoundError(UserError):
    """A job has no review or erasure of a number."""

    def __init__(self, job_id: str, part: str, number: int, count: int) -> None:
        last = f"the last one is {count - 1}" if count else "it has none"
        super().__init__(f"{job_id} has no {part} {number}: {last}.")


class ErasedError(UserError):
    """Texts that are needed were erased."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"Texts of {job_id} were erased, so it cannot be repeated or continued.")


class NotImportedError(UserError):
    """A job, a review or an erasure was not imported with a proof, so that it has none of another log."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"{name} was not imported with a proof, so it has no proof of another log."
        )


class StatisticsError(UserError):
    """The request for statistics is invalid. The message says why."""

    def __init__(self, param: str, code: str, message: str) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class LogKeyError(UserError):
    """This process cannot sign the log. The message says why."""


class LogSetBackError(LogKeyError):
    """The log does not continue a checkpoint that was signed. The message says what to do."""


class QueueFullError(UserError):
    """As many jobs as `HELIXQ_MAX_QUEUED` allows are queued already."""

    def __init__(self) -> None:
        super().__init__("The queue is full. Retry later.")


class QuotaExceededError(UserError):
    """As many jobs of an API key are queued as it allows."""

    def __init__(self, max_queued: int) -> None:
        jobs = "job" if max_queued == 1 else "jobs"
        super().__init__(
            f"The limit of {max_queued} queued {jobs} of this API key is reached. Retry when one has started."
        )


class TooManyBatchesError(UserError):
    """An owner has the maximum number of open batches."""

    def __init__(self, maximum: int) -> None:
        super().__init__(
            f"The limit of {maximum} open batches of an owner is reached. Retry when one has ended."
        )


class IdempotencyError(UserError):
    """The idempotency key was used before, with a different request."""

    def __init__(self) -> None:
        super().__init__("This idempotency key was used with a different request. Use a new key.")


class QueueUnavailableError(UserError):
    """Redis cannot be reached."""
