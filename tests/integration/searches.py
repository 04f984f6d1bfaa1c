"""Jobs to search for, and searches that read all their pages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from jobs.database import Database
from jobs.enums import Order
from jobs.models import Job
from jobs.search.filters import Filters
from jobs.search.query import parse
from jobs.statements import search
from jobs.use_cases import indexing, searching, stages
from tests.integration.rows import OUTPUT, claim, submit


def end(database: Database, *texts: str, **changes: object) -> Job:
    """Submit a job, and finish its stages with texts."""
    job = submit(database, **changes)
    for stage_index, text in enumerate(texts or ("A draft.", "A critique.", "An answer.")):
        output = replace(OUTPUT, text=text, delta_lengths=[len(text)])
        stages.record(database, claim(database, job, stage_index), output)
    return job


def index(database: Database) -> int:
    """Do what the duty does, until it has nothing to do; return how many jobs were indexed."""
    count = 0
    while indexing.any_pending(database):
        count += indexing.put(database, indexing.prepare(database))
    return count


def find(
    database: Database, query: str | None = None, *, limit: int = 100, **filters: Any
) -> list[str]:
    """Return the ids of all jobs of a list."""
    parsed = None if query is None else parse(query)
    return list(pages(database, Filters(query=parsed, **filters), Order.NEWEST, limit))


def pages(
    database: Database,
    filters: Filters,
    order: Order,
    limit: int,
    effort: int = search.MAX_EFFORT,
    owner: str | None = None,
) -> Iterator[str]:
    after = None
    while True:
        page = searching.search(
            database, owner, filters, limit=limit, order=order, after=after, effort=effort
        )
        assert len(page.jobs) <= limit
        yield from (listed.job.id for listed in page.jobs)
        if (after := page.next) is None:
            return
