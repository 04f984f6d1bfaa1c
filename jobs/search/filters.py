"""What a list of jobs is filtered by, and the query of the search index that finds it."""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, NamedTuple

from jobs.enums import ANY, RATED, Status
from jobs.search import facets
from jobs.search.query import And, Node, Or, Term


class Bounds(NamedTuple):
    """A number of a document, and the range it must be in, ends included. None is no limit."""

    column: Literal["attempts", "changed", "duration"]
    least: float | None
    most: float | None


@dataclass(frozen=True)
class IndexQuery:
    """A query of the search index."""

    node: Node
    #: Ranges of numbers. The index only has buckets of them, so that the numbers are compared as well.
    bounds: Sequence[Bounds]

    def narrowed(self, terms: Sequence[Term]) -> IndexQuery:
        """Return the query for those of its documents that have any of some terms; for all of them without terms."""
        if not terms:
            return self
        of = self.node.of if isinstance(self.node, And) else (self.node,)
        return IndexQuery(And((*of, Or(tuple(terms)))), self.bounds)


@dataclass(frozen=True)
class Filters:
    """What a list is filtered by. Each one that is set must be met."""

    statuses: tuple[Status, ...] = ()
    #: Created from ``since`` on, and before ``until``.
    since: dt.datetime | None = None
    until: dt.datetime | None = None
    query: Node | None = None
    #: Name, end of the name, or digest of an adapter that a worker of the job served.
    adapter: str | None = None
    #: The id of the API key that submitted the job.
    key: str | None = None
    #: The id of the batch that the job answers a line of.
    batch: str | None = None
    #: As in `Job.model`.
    model: str | None = None
    #: Id or host of a worker that ran a stage.
    worker: str | None = None
    metadata: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    #: Of one stage.
    min_attempts: int | None = None
    #: Shares of words, from 0 to 1.
    min_changed: float | None = None
    max_changed: float | None = None
    #: Seconds.
    min_duration: float | None = None
    max_duration: float | None = None
    #: The last rating of the regeneration; None for jobs without one, `RATED` for those with any, `ANY` for all.
    rating: int | None = ANY
    #: The same for the critique.
    critique_rating: int | None = ANY
    #: Who has reviewed the job.
    reviewer: str | None = None
    #: That a review of the job has.
    tag: str | None = None

    @property
    def need_index(self) -> bool:
        """Whether the table of jobs has no index for them."""
        return (
            bool(self.metadata)
            or self.key is not None
            or self.batch is not None
            or self.rating == RATED
            or self.critique_rating != ANY
            or self._need_documents
        )

    @property
    def need_ended(self) -> bool:
        """Whether only jobs that have ended can meet them."""
        ratings = (self.rating, self.critique_rating)
        return self._need_documents or any(rating not in (ANY, None) for rating in ratings)

    @property
    def _need_documents(self) -> bool:
        """Whether there are some that only the index knows, which has jobs that have ended."""
        rest = (
            self.query,
            self.adapter,
            self.model,
            self.worker,
            self.min_attempts,
            self.min_changed,
            self.max_changed,
            self.min_duration,
            self.max_duration,
            self.reviewer,
            self.tag,
        )
        return any(value is not None for value in rest)

    @property
    def contradict(self) -> bool:
        """Whether a minimum is above its maximum: no job meets both, and the index has no query for that."""
        ranges = (self.min_changed, self.max_changed), (self.min_duration, self.max_duration)
        return any(
            least is not None and most is not None and least > most for least, most in ranges
        )

    def index_query(self, owner: str | None, adapters: Collection[str]) -> IndexQuery:
        """Return them as a query of the search index.

        Args:
            owner: of the jobs; None for all.
            adapters: the names and digests that ``adapter`` stands for.
        """
        parts: list[Node] = []
        bounds: list[Bounds] = []
        if self.query is not None:
            parts += self.query.of if isinstance(self.query, And) else (self.query,)
        if owner is not None:
            parts.append(Term(facets.term("owner", owner)))
        if self.statuses:
            terms = (Term(facets.term("status", status.value)) for status in self.statuses)
            parts.append(Or(tuple(terms)))
        if self.adapter is not None:
            parts.append(Or(tuple(Term(facets.term("adapter", name)) for name in adapters)))
        for name in ("key", "batch", "model", "worker", "reviewer", "tag"):
            value = getattr(self, name)
            if value is not None:
                parts.append(Term(facets.term(name, value)))
        for name in ("rating", "critique_rating"):
            if getattr(self, name) != ANY:
                parts.append(facets.rated(name, getattr(self, name)))
        parts += [Term(facets.term("metadata", *item)) for item in self.metadata.items()]
        if self.min_attempts is not None and self.min_attempts > 1:
            parts.append(facets.at_least(self.min_attempts))
            if self.min_attempts > facets.MAX_ATTEMPTS:
                bounds.append(Bounds("attempts", self.min_attempts, None))
        changed = Bounds("changed", self.min_changed, self.max_changed)
        duration = Bounds("duration", self.min_duration, self.max_duration)
        for within, terms_of in (
            (changed, facets.share_terms),
            (duration, facets.duration_terms),
        ):
            if within.least is not None or within.most is not None:
                parts.append(Or(tuple(terms_of(within.least, within.most))))
                bounds.append(within)
        return IndexQuery(And(tuple(parts)), bounds)
