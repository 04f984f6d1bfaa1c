"""Batches for their owners: accepting, reading and cancelling them; and deleting old ones."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from jobs.database import Database
from jobs.database_clock import utcnow
from jobs.errors import BatchNotFoundError, StoredFileNotFoundError, TooManyBatchesError
from jobs.ids import new_id
from jobs.models import Batch, FilePurpose
from jobs.page_request import PageRequest
from jobs.statements import batches, files, requests
from jobs.statements.requests import Keyed
from jobs.timing import SECONDS_PER_DAY
from jobs.transient import retry_on_conflict

#: Seconds in which a batch must be answered: 24 hours.
COMPLETION_WINDOW = 86_400.0
#: Batches of an owner that have not ended. The processes that work on batches look at all that are open.
MAX_OPEN_OF_OWNER = 100
#: The maximum number of batches that are deleted at once: nobody else can write to SQLite meanwhile.
MAX_DELETED = 100


@dataclass(frozen=True)
class NewBatch:
    """A file of requests to answer."""

    input_file_id: str
    endpoint: str
    #: What of a chat's messages is asked where a line does not say so.
    chat_context: str
    metadata: dict[str, str]
    output_expires_after: int | None
    #: The request, if it has an idempotency key.
    keyed: Keyed | None = None


@retry_on_conflict
def create(database: Database, owner: str, new: NewBatch, key_id: str | None = None) -> Batch:
    """Accept a batch; its lines are validated later.

    Args:
        database: of the batches.
        owner: of the batch.
        new: the batch.
        key_id: of the API key that the batch is created with, if any.

    Returns:
        the batch, or the one that the same request created before.

    Raises:
        StoredFileNotFoundError: the owner has no such input file.
        TooManyBatchesError: `MAX_OPEN_OF_OWNER` batches of the owner have not ended.
        IdempotencyError: the idempotency key was used for a different request.
    """
    batch_id = new_id("batch_")
    try:
        with database.write_session() as session:
            existing = batches.find_made(session, new.keyed)
            if existing is not None:
                return existing
            file = files.get(session, owner, new.input_file_id)
            if file.purpose is not FilePurpose.BATCH:
                raise StoredFileNotFoundError(new.input_file_id)
            if batches.count_open(session, owner) >= MAX_OPEN_OF_OWNER:
                raise TooManyBatchesError(MAX_OPEN_OF_OWNER)
            batch = Batch(
                id=batch_id,
                owner=owner,
                key_id=key_id,
                endpoint=new.endpoint,
                chat_context=new.chat_context,
                metadata_=new.metadata,
                **requests.columns(new.keyed),
                input_file_id=new.input_file_id,
                output_expires_after=new.output_expires_after,
                expires_at=utcnow(COMPLETION_WINDOW),
            )
            session.add(batch)
            session.flush()
            session.refresh(batch)
            return batch
    except sa.exc.IntegrityError:
        # PostgreSQL: another transaction committed the same key after this one had looked for it.
        with database.read_session() as session:
            existing = batches.find_made(session, new.keyed)
        if existing is None:
            raise
        return existing


def get_batch(database: Database, owner: str | None, batch_id: str) -> Batch:
    """Return an owner's batch (None: any owner's).

    Raises:
        BatchNotFoundError: the owner has no such batch.
    """
    with database.read_session() as session:
        return batches.get(session, owner, batch_id)


def list_batches(database: Database, owner: str, page: PageRequest) -> tuple[list[Batch], bool]:
    """Return a page of an owner's batches by age, and whether more follow.

    Raises:
        CursorError: the owner has no batch with the id ``page.after``.
    """
    with database.read_session() as session, page.check_after(BatchNotFoundError):
        return batches.list_page(session, owner, page)


@retry_on_conflict
def cancel_batch(
    database: Database, owner: str | None, batch_id: str, keyed: Keyed | None = None
) -> tuple[Batch, list[str]]:
    """Begin to cancel a batch, unless it is about to end; return it, and the jobs that ended with it.

    Its jobs have ended at once, as with `cancellation.cancel`. Its lines without an answer become errors
    later, and then the batch is cancelled.

    Args:
        database: of the batch.
        owner: of the batch; None for any.
        batch_id: of the batch.
        keyed: the request that asks for it, if it has an idempotency key.

    Raises:
        BatchNotFoundError: the owner has no such batch.
        IdempotencyError: the key was used for a different request.
    """
    batches.check_id(batch_id)
    with database.write_session() as session:
        connection = session.connection()
        cancelled: list[str] = []
        if requests.begin(connection, keyed) is None:
            if batches.cancel(connection, owner, batch_id):
                cancelled = batches.cancel_jobs(connection, batch_id)
            requests.end(connection, keyed)
        return batches.get(session, owner, batch_id), cancelled


def delete_batches(database: Database, days: int) -> int:
    """Delete batches that ended more than ``days`` days ago, up to `MAX_DELETED`; return how many were deleted.

    Their files are deleted by `files.sweep_files`.
    """
    with database.write() as connection:
        return batches.delete_ended(connection, days * SECONDS_PER_DAY, limit=MAX_DELETED)
