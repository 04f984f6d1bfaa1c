"""Statements on files and their content.

The owner None stands for all owners. Clients see files that are complete and have not expired.
"""

from __future__ import annotations

import datetime as dt

import sqlalchemy as sa
from sqlalchemy.orm import Session

from jobs.database_clock import utcnow, utcnow_once
from jobs.errors import StoredFileNotFoundError
from jobs.ids import is_id
from jobs.models import Batch, File, FileChunk, FilePurpose, FileState
from jobs.page_request import PageRequest
from jobs.statements import clock, requests
from jobs.statements.owners import is_owned
from jobs.statements.paging import read_page
from jobs.statements.requests import Keyed

#: Seconds after which a file that a client is still sending counts as lost with its web process.
UPLOAD_LOST_AFTER = 7200.0

_IS_VISIBLE = sa.and_(
    File.state == FileState.PROCESSED,
    sa.or_(File.expires_at.is_(None), File.expires_at > utcnow()),
)
#: The condition of the partial index, in its words.
_IS_UNFINISHED = File.state != sa.literal_column("'processed'")
#: A batch that has not ended reads its input, also if a client deleted the file or it has expired.
_IS_IN_USE = sa.exists().where(Batch.input_file_id == File.id, Batch.ended_at.is_(None))

_FIND_CHUNK = (
    sa.select(FileChunk.start)
    .where(FileChunk.file_id == sa.bindparam("file"), FileChunk.start <= sa.bindparam("position"))
    .order_by(FileChunk.start.desc())
    .limit(1)
)
_READ = (
    sa.select(FileChunk.start, FileChunk.data)
    .where(
        FileChunk.file_id == sa.bindparam("file"),
        FileChunk.start >= _FIND_CHUNK.scalar_subquery(),
    )
    .order_by(FileChunk.start)
    .limit(sa.bindparam("limit"))
)


def check_id(file_id: str) -> None:
    """Check that a text can be a file's id.

    Raises:
        StoredFileNotFoundError: it cannot.
    """
    if not is_id(file_id, "file-"):
        raise StoredFileNotFoundError(file_id)


def add(
    connection: sa.Connection,
    file_id: str,
    owner: str,
    name: str,
    purpose: FilePurpose,
    state: FileState,
) -> None:
    """Add an empty file."""
    connection.execute(
        sa.insert(File).values(id=file_id, owner=owner, name=name, purpose=purpose, state=state)
    )


def append(connection: sa.Connection, file_id: str, state: FileState, data: bytes) -> bool:
    """Append a chunk to a file of a state; return whether there is such a file."""
    statement = (
        sa.update(File)
        .where(File.id == file_id, File.state == state)
        .values(size=File.size + len(data))
        .returning(File.size)
    )
    size = connection.scalar(statement)
    if size is None:
        return False
    connection.execute(
        sa.insert(FileChunk).values(file_id=file_id, start=size - len(data), data=data)
    )
    return True


def finish(
    connection: sa.Connection,
    file_id: str,
    *,
    expires_in: int | None,
    keyed: Keyed | None = None,
) -> bool:
    """Let clients see a file that is complete, from now on; return whether there is one.

    Args:
        connection: in a transaction that writes.
        file_id: of the file.
        expires_in: seconds from now; None for never.
        keyed: the request that stored it, if it has an idempotency key.
    """
    now = clock.now(connection)
    expires_at = None if expires_in is None else now + dt.timedelta(seconds=expires_in)
    statement = (
        sa.update(File)
        .where(File.id == file_id, File.state.in_((FileState.UPLOADING, FileState.WRITING)))
        .values(
            state=FileState.PROCESSED,
            created_at=now,
            expires_at=expires_at,
            **requests.columns(keyed),
        )
    )
    return bool(connection.execute(statement).rowcount)


def get(session: Session, owner: str | None, file_id: str) -> File:
    """Return an owner's file.

    Raises:
        StoredFileNotFoundError: the owner has no such file.
    """
    check_id(file_id)
    file = session.scalar(sa.select(File).where(File.id == file_id, _IS_VISIBLE))
    if file is None or owner not in (None, file.owner):
        raise StoredFileNotFoundError(file_id)
    return file


def find_made(session: Session, request: Keyed | None) -> File | None:
    """Return the file that the same request stored; see `requests.find_made`."""
    return requests.find_made(session, request, sa.select(File).where(_IS_VISIBLE))


def free_idempotency_key(connection: sa.Connection, request: Keyed) -> None:
    """Take an idempotency key from the file that has it: one that has expired, and is not deleted yet."""
    connection.execute(
        sa.update(File)
        .where(File.owner == request.owner, File.idempotency_key == request.key, ~_IS_VISIBLE)
        .values(requests.columns(None))
    )


def list_page(
    session: Session, owner: str, page: PageRequest, purpose: FilePurpose | None
) -> tuple[list[File], bool]:
    """Return a page of an owner's files by age, and whether more follow.

    Raises:
        StoredFileNotFoundError: the owner has no file with the id ``page.after``.
    """
    conditions = [File.owner == owner, _IS_VISIBLE]
    if purpose is not None:
        conditions.append(File.purpose == purpose)
    last = None
    if page.after is not None:
        check_id(page.after)
        # It may have been deleted since it was listed.
        last = session.get(File, page.after)
        if last is None or last.owner != owner:
            raise StoredFileNotFoundError(page.after)
    return read_page(session, File, conditions, page, last)


def size(connection: sa.Connection, file_id: str) -> int:
    """Return the number of bytes of a file; 0 if it is gone."""
    return connection.scalar(sa.select(File.size).where(File.id == file_id)) or 0


def read(connection: sa.Connection, file_id: str, position: int, *, chunks: int) -> bytes:
    """Return a file's content from a position on, up to the end of a number of chunks; empty at its end."""
    parameters = {"file": file_id, "position": position, "limit": chunks}
    rows = connection.execute(_READ, parameters).all()
    if not rows:
        return b""
    return b"".join(row.data for row in rows)[position - rows[0].start :]


def mark_deleted(connection: sa.Connection, owner: str | None, file_id: str) -> bool:
    """Hide an owner's file for good; return whether there was one."""
    statement = (
        sa.update(File)
        .where(File.id == file_id, is_owned(File.owner, owner), _IS_VISIBLE)
        .values(state=FileState.DELETED, idempotency_key=None, request_digest=None)
    )
    return bool(connection.execute(statement).rowcount)


def drop(connection: sa.Connection, file_id: str) -> None:
    """Hide a file that is not complete for good."""
    connection.execute(
        sa.update(File)
        .where(File.id == file_id, File.state.in_((FileState.UPLOADING, FileState.WRITING)))
        .values(state=FileState.DELETED)
    )


def any_to_sweep(connection: sa.Connection, retention: float | None) -> bool:
    """Return whether `hide_old` or `find_deleted` would find a file: one look at an index each."""
    conditions = [*_old(retention), sa.and_(_IS_UNFINISHED, File.state == FileState.DELETED)]
    found = (sa.exists().where(condition) for condition in conditions)
    return bool(connection.scalar(sa.select(sa.or_(*found))))


def hide_old(connection: sa.Connection, retention: float | None) -> None:
    """Hide files for good that have expired, or that a web process did not finish.

    Args:
        connection: in a transaction that writes.
        retention: seconds after which all files count as expired; None for never.
    """
    for condition in _old(retention):
        connection.execute(
            sa.update(File)
            .where(condition)
            .values(state=FileState.DELETED, idempotency_key=None, request_digest=None)
        )


def _old(retention: float | None) -> list[sa.ColumnElement[bool]]:
    processed = File.state == FileState.PROCESSED
    lost = File.created_at < utcnow_once(-UPLOAD_LOST_AFTER)
    conditions = [
        sa.and_(_IS_UNFINISHED, File.state == FileState.UPLOADING, lost),
        sa.and_(File.expires_at.is_not(None), File.expires_at < utcnow_once(), processed),
    ]
    if retention is not None:
        conditions.append(sa.and_(File.created_at < utcnow_once(-retention), processed))
    return conditions


def find_deleted(connection: sa.Connection) -> str | None:
    """Return the id of a file that is hidden for good and that no open batch reads, if there is one."""
    query = (
        sa.select(File.id)
        .where(_IS_UNFINISHED, File.state == FileState.DELETED, ~_IS_IN_USE)
        .order_by(File.created_at)
        .limit(1)
    )
    return connection.scalar(query)


def delete_chunks(connection: sa.Connection, file_id: str, limit: int) -> int:
    """Delete up to ``limit`` chunks of a file; return how many were deleted."""
    chunks = (
        sa.select(FileChunk.start)
        .where(FileChunk.file_id == file_id)
        .order_by(FileChunk.start)
        .limit(limit)
    )
    statement = sa.delete(FileChunk).where(
        FileChunk.file_id == file_id, FileChunk.start.in_(chunks)
    )
    return connection.execute(statement).rowcount


def delete(connection: sa.Connection, file_id: str) -> None:
    """Delete a file that has no chunks."""
    connection.execute(sa.delete(File).where(File.id == file_id, File.state == FileState.DELETED))
