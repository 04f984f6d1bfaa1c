"""Statements that erase texts: an empty value takes the place of each. Triggers let nothing else pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from jobs.models import Attempt, Batch, BatchLine, Erasure, FileChunk, Job, Review


def add(
    connection: sa.Connection,
    job_id: str,
    texts: Sequence[str],
    *,
    erased_by: str,
    key_id: str | None,
    created_at: Any,
) -> None:
    """Note which texts of a job are erased. It comes before what erases them."""
    connection.execute(
        sa.insert(Erasure).values(
            job_id=job_id,
            texts=list(texts),
            erased_by=erased_by,
            key_id=key_id,
            created_at=created_at,
        )
    )


def update_job(connection: sa.Connection, job_id: str, columns: Mapping[Any, Any]) -> None:
    """Change columns of a job."""
    connection.execute(sa.update(Job).where(Job.id == job_id).values(columns))


def update_attempt(connection: sa.Connection, attempt_id: int, columns: Mapping[Any, Any]) -> None:
    """Erase texts of an attempt that has ended."""
    connection.execute(sa.update(Attempt).where(Attempt.id == attempt_id).values(columns))


def update_review(connection: sa.Connection, review_id: str, columns: Mapping[Any, Any]) -> None:
    """Erase texts of a review."""
    connection.execute(sa.update(Review).where(Review.id == review_id).values(columns))


def awaits_line(connection: sa.Connection, batch_id: str, job_id: str) -> bool:
    """Return whether the answer of a job is yet to be written to its batch's files."""
    line = sa.exists().where(BatchLine.batch_id == batch_id, BatchLine.job_id == job_id)
    return bool(connection.scalar(sa.select(line)))


def custom_id(connection: sa.Connection, job_id: str) -> str | None:
    """Return the client's name for the line of a batch that a job answers."""
    return connection.scalar(sa.select(Job.custom_id).where(Job.id == job_id))


def result_files(connection: sa.Connection, batch_id: str) -> list[str]:
    """Return the ids of the files that a batch's answers and errors are in; none if it was deleted."""
    query = sa.select(Batch.output_file_id, Batch.error_file_id).where(Batch.id == batch_id)
    row = connection.execute(query).one_or_none()
    return [file_id for file_id in row or () if file_id is not None]


def chunks(
    connection: sa.Connection, file_id: str, start: int, end: int
) -> list[sa.Row[int, bytes]]:
    """Return start and data of a file's chunks that have bytes from ``start`` on and before ``end``."""
    first = (
        sa.select(FileChunk.start)
        .where(FileChunk.file_id == file_id, FileChunk.start <= start)
        .order_by(FileChunk.start.desc())
        .limit(1)
        .scalar_subquery()
    )
    query = sa.select(FileChunk.start, FileChunk.data).where(
        FileChunk.file_id == file_id, FileChunk.start >= first, FileChunk.start < end
    )
    return list(connection.execute(query.order_by(FileChunk.start).with_for_update()))


def set_chunk(connection: sa.Connection, file_id: str, start: int, data: bytes) -> None:
    """Change the data of a file's chunk. It keeps its length."""
    chunk = sa.update(FileChunk).where(FileChunk.file_id == file_id, FileChunk.start == start)
    connection.execute(chunk.values(data=data))
