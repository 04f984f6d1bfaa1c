"""Files: storing, reading, listing and deleting them.

A file's content is in the database, in chunks, since the database is the truth: every web process and every
worker sees it on whatever host, and a backup of the database has it. A chunk is one transaction, so that
others can write to SQLite in between. Nobody sees a file before its last transaction, `finish_upload`.
"""

from __future__ import annotations

import sqlalchemy as sa

from jobs.database import Database
from jobs.errors import StoredFileNotFoundError
from jobs.ids import new_id
from jobs.models import File, FilePurpose, FileState
from jobs.page_request import PageRequest
from jobs.statements import files
from jobs.statements.requests import Keyed
from jobs.timing import SECONDS_PER_DAY

#: Bytes of a chunk.
CHUNK = 1 << 18
#: The maximum number of bytes of a file.
MAX_FILE = 200 << 20
#: Chunks that one read returns at most.
READ_CHUNKS = 16
#: Seconds until the input of batches expires by default, as in OpenAI's API.
DEFAULT_EXPIRY = 30 * 86_400
#: Chunks of deleted files that one transaction deletes.
DELETED_CHUNKS = 40


def begin_upload(database: Database, owner: str, name: str) -> str:
    """Begin a file that a client sends; return its id."""
    file_id = new_id("file-")
    with database.write() as connection:
        files.add(connection, file_id, owner, name, FilePurpose.BATCH, FileState.UPLOADING)
    return file_id


def append(database: Database, file_id: str, data: bytes) -> None:
    """Append a chunk to a file that a client sends.

    Raises:
        StoredFileNotFoundError: it was given up, because it took too long.
    """
    with database.write() as connection:
        if not files.append(connection, file_id, FileState.UPLOADING, data):
            raise StoredFileNotFoundError(file_id)


def finish_upload(
    database: Database, file_id: str, expires_in: int, keyed: Keyed | None = None
) -> File:
    """Let its owner see a file that is complete; return it.

    If the same request was done before, the file is given up, and the one that it stored is returned.

    Args:
        database: of the file.
        file_id: of the file.
        expires_in: seconds from now.
        keyed: the request, if it has an idempotency key.

    Raises:
        StoredFileNotFoundError: it was given up, because it took too long.
        IdempotencyError: the idempotency key was used for a different request.
    """
    try:
        return _finish(database, file_id, expires_in, keyed)
    except sa.exc.IntegrityError:
        # PostgreSQL: another transaction committed the same key after this one had looked for it.
        return _finish(database, file_id, expires_in, keyed)


def _finish(database: Database, file_id: str, expires_in: int, keyed: Keyed | None) -> File:
    with database.write_session() as session:
        connection = session.connection()
        existing = files.find_made(session, keyed)
        if existing is not None:
            files.drop(connection, file_id)
            return existing
        if keyed is not None:
            files.free_idempotency_key(connection, keyed)
        if not files.finish(connection, file_id, expires_in=expires_in, keyed=keyed):
            raise StoredFileNotFoundError(file_id)
        return files.get(session, None, file_id)


def abort_upload(database: Database, file_id: str) -> None:
    """Give up a file that is not complete. A sweep deletes its content."""
    with database.write() as connection:
        files.drop(connection, file_id)


def get_file(database: Database, owner: str | None, file_id: str) -> File:
    """Return an owner's file (None: any owner's).

    Raises:
        StoredFileNotFoundError: the owner has no such file.
    """
    with database.read_session() as session:
        return files.get(session, owner, file_id)


def list_files(
    database: Database, owner: str, page: PageRequest, purpose: FilePurpose | None = None
) -> tuple[list[File], bool]:
    """Return a page of an owner's files by age, and whether more follow.

    Args:
        database: of the files.
        owner: of the files.
        page: which page.
        purpose: of the files; None for all.

    Raises:
        CursorError: the owner has no file with the id ``page.after``.
    """
    with database.read_session() as session, page.check_after(StoredFileNotFoundError):
        return files.list_page(session, owner, page, purpose)


def read_file(
    database: Database, file_id: str, position: int, *, chunks: int = READ_CHUNKS
) -> bytes:
    """Return some of a file's content from a position on, up to the end of a number of chunks.

    It is empty at the file's end, or if the file was deleted.
    """
    with database.read() as connection:
        return files.read(connection, file_id, position, chunks=chunks)


def delete_file(database: Database, owner: str | None, file_id: str) -> None:
    """Delete a file. Nobody sees it from now on; a sweep deletes its content.

    A batch that has not ended goes on reading its input.

    Raises:
        StoredFileNotFoundError: the owner has no such file.
    """
    files.check_id(file_id)
    with database.write() as connection:
        if not files.mark_deleted(connection, owner, file_id):
            raise StoredFileNotFoundError(file_id)


def sweep_files(database: Database, retention_days: int = 0) -> bool:
    """Delete files that have expired or were lost while they were sent, and what is left of deleted ones.

    Args:
        database: of the files.
        retention_days: after which all files are deleted; 0 for never.

    Returns:
        whether more is left to delete.
    """
    retention = retention_days * SECONDS_PER_DAY if retention_days else None
    # As a rule there is nothing to do, which should lock nothing.
    with database.read() as connection:
        if not files.any_to_sweep(connection, retention):
            return False
    with database.write() as connection:
        files.hide_old(connection, retention)
        file_id = files.find_deleted(connection)
        if file_id is None:
            return False
        if files.delete_chunks(connection, file_id, DELETED_CHUNKS) < DELETED_CHUNKS:
            files.delete(connection, file_id)
    return True
