"""Exporting: jobs in the order of their creation, a page at a time.

Each page is a short transaction of its own, so that whoever reads slowly holds no connection and no snapshot.
A page begins after the place of the page before and not after its last job, which may be deleted by then.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import replace
from typing import NamedTuple

from jobs.database import Database
from jobs.models import Job
from jobs.statements import jobs
from jobs.statements.jobs import Filters, Place
from jobs.tlog.proof import Proof
from jobs.use_cases import proving

__all__ = ["Exported", "Filters", "pages"]

#: Jobs of a page. A job may have 11 stages of a whole context each.
PAGE = 50


class Exported(NamedTuple):
    """A job with all that its history has."""

    job: Job
    #: Of its entry in the log and those of its reviews and erasures, by their places; empty if they were not asked for.
    proofs: Mapping[int, Proof]


def pages(
    database: Database,
    owner: str | None,
    filters: Filters,
    *,
    with_proofs: bool = False,
    size: int = PAGE,
) -> Generator[list[Exported]]:
    """Yield jobs in the order of their creation, up to the one that is the newest now.

    Args:
        database: of the jobs.
        owner: whose jobs may be read; None for all.
        filters: which of them.
        with_proofs: whether to add the proofs of their entries, and of those of their reviews and erasures.
        size: the maximum number of jobs of a page.
    """
    if owner is not None:
        if filters.owner not in (None, owner):
            return
        filters = replace(filters, owner=owner)
    with database.read() as connection:
        last = jobs.find_last(connection, filters)
    after: Place | None = None
    while last is not None:
        with database.read_session() as session:
            found = jobs.list_between(session, filters, after, last, size)
            proofs = proving.prove_all(session.connection(), found) if with_proofs else {}
        if found:
            after = Place(found[-1].created_at, found[-1].id)
            yield [Exported(job, proofs) for job in found]
        if len(found) < size:
            return
