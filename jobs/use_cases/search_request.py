"""A request to the search index for a page of jobs, and the page that it finds.

`jobs.use_cases.searching_by_age` and `searching_by_rank` search, and `jobs.use_cases.searching` loads what they find.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import sqlalchemy as sa

from jobs import adapter_names
from jobs.enums import Order
from jobs.search.filters import Filters, IndexQuery
from jobs.statements import documents, rollups
from jobs.statements.documents import LAST_ID


@dataclass(frozen=True)
class SearchRequest:
    """Which jobs to find: the arguments of `jobs.use_cases.searching.search`."""

    #: Of the jobs; None for all.
    owner: str | None
    filters: Filters
    limit: int
    after: str | None
    order: Order
    effort: int


@dataclass(frozen=True)
class FoundPage:
    """A page of the documents that were found."""

    #: Of documents, in order.
    ids: list[int]
    next: str | None
    #: The open jobs of the page, by the ids that their documents will have.
    unfinished: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Range:
    """A range of documents, by their ids, and in which order it is read."""

    #: The lowest id, and the one after the highest.
    first: int
    end: int
    newest_first: bool

    @classmethod
    def of(cls, request: SearchRequest) -> Range:
        """Return the range of a request, with all of its pages."""
        since, until = request.filters.since, request.filters.until
        return cls(
            0 if since is None else documents.first_id(since),
            LAST_ID if until is None else documents.first_id(until),
            request.order is not Order.OLDEST,
        )

    def beyond(self, place: int) -> Range:
        """Return the part that comes after a document."""
        if self.newest_first:
            return Range(self.first, min(self.end, place), True)
        return Range(max(self.first, place + 1), self.end, False)

    def up_to(self, place: int) -> Range:
        """Return the part that ends with a document of the range."""
        if self.newest_first:
            return Range(place, self.end, True)
        return Range(self.first, place + 1, False)

    def __contains__(self, place: int) -> bool:
        return self.first <= place < self.end


def index_query(connection: sa.Connection, request: SearchRequest) -> IndexQuery:
    """Return the filters of a request as a query of the search index."""
    adapter = request.filters.adapter
    named = () if adapter is None else adapter_names.names(rollups.models(connection), adapter)
    return request.filters.index_query(request.owner, sorted(named))
