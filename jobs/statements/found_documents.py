"""Statements that read what a search has found: documents, their jobs, and the texts of these."""

from __future__ import annotations

from collections.abc import Collection

import sqlalchemy as sa
from sqlalchemy.orm import Session, load_only

from jobs.column_types import UTCDateTime
from jobs.models import Attempt, Job, SearchDocument
from jobs.statements.documents import first_id, tie
from jobs.statements.owners import is_owned


def load(session: Session, ids: Collection[int]) -> dict[int, tuple[Job, SearchDocument]]:
    """Return documents with their jobs, by the documents' ids. Those that are gone are left out."""
    query = sa.select(Job, SearchDocument).join(SearchDocument, SearchDocument.job_id == Job.id)
    rows = session.execute(query.where(SearchDocument.id.in_(ids)))
    return {document.id: (job, document) for job, document in rows}


def load_documents(session: Session, job_ids: Collection[str]) -> dict[str, SearchDocument]:
    """Return the documents of jobs, by the jobs' ids. Jobs that are not indexed are left out."""
    query = sa.select(SearchDocument).where(SearchDocument.job_id.in_(job_ids))
    return {document.job_id: document for document in session.scalars(query)}


def load_outputs(session: Session, job_ids: Collection[str]) -> dict[str, list[Attempt]]:
    """Return the attempts of jobs that have an output, without their prompts, the newest first."""
    columns = (Attempt.job_id, Attempt.stage_index, Attempt.role, Attempt.output)
    query = (
        sa.select(Attempt)
        .where(Attempt.job_id.in_(job_ids), Attempt.output.is_not(None))
        .order_by(Attempt.id.desc())
        .options(load_only(*columns, raiseload=True))
    )
    outputs: dict[str, list[Attempt]] = {}
    for attempt in session.scalars(query):
        outputs.setdefault(attempt.job_id, []).append(attempt)
    return outputs


def id_of(connection: sa.Connection, owner: str | None, job_id: str) -> int | None:
    """Return the id of the document of an owner's job, or that it would have; None if there is no such job."""
    query = (
        sa.select(SearchDocument.id, sa.type_coerce(Job.created_at, UTCDateTime()))
        .select_from(Job)
        .outerjoin(SearchDocument, SearchDocument.job_id == Job.id)
        .where(Job.id == job_id, is_owned(Job.owner, owner))
    )
    row = connection.execute(query).one_or_none()
    if row is None:
        return None
    return first_id(row[1]) + tie(job_id) if row[0] is None else int(row[0])
