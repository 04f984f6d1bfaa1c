"""What a list of jobs is filtered by: as conditions on the table of jobs, and as a query of the search index."""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import sqlalchemy as sa

from jobs.models import Status
from jobs.search import facets
from jobs.search.query import All, Any, Node, Term
from jobs.statements import jobs
from jobs.statements.jobs import ANY
from jobs.statements.search import Wanted


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
    #: The last rating of the regeneration; None for jobs without one, `ANY` for all.
    rating: int | None = ANY

    @property
    def need_index(self) -> bool:
        """Whether the table of jobs has no index for them."""
        return bool(self.metadata) or self.need_ended

    @property
    def need_ended(self) -> bool:
        """Whether only jobs that have ended can meet them."""
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
        )
        return any(value is not None for value in rest)

    @property
    def contradict(self) -> bool:
        """Whether a minimum is above its maximum: no job meets both, and the index has no query for that."""
        ranges = (self.min_changed, self.max_changed), (self.min_duration, self.max_duration)
        return any(
            least is not None and most is not None and least > most for least, most in ranges
        )

    def plain(self, owner: str | None) -> jobs.Filters:
        """Return those that the table of jobs has indexes for, with an owner; None for all."""
        return jobs.Filters(owner, self.since, self.until, self.rating)

    def wanted(self, owner: str | None, adapters: Collection[str]) -> Wanted:
        """Return them as a query of the search index.

        Args:
            owner: of the jobs; None for all.
            adapters: the names and digests that ``adapter`` stands for.
        """
        parts: list[Node] = []
        conditions: list[sa.ColumnElement[bool]] = []
        if self.query is not None:
            parts += self.query.of if isinstance(self.query, All) else (self.query,)
        if owner is not None:
            parts.append(Term(facets.term("owner", owner)))
        if self.statuses:
            terms = (Term(facets.term("status", status.value)) for status in self.statuses)
            parts.append(Any(tuple(terms)))
        if self.adapter is not None:
            parts.append(Any(tuple(Term(facets.term("adapter", name)) for name in adapters)))
        for name in ("model", "worker"):
            value = getattr(self, name)
            if value is not None:
                parts.append(Term(facets.term(name, value)))
        if self.rating != ANY:
            parts.append(Term(facets.rating_term(self.rating)))
        parts += [Term(facets.term("metadata", *item)) for item in self.metadata.items()]
        if self.min_attempts is not None and self.min_attempts > 1:
            parts.append(facets.at_least(self.min_attempts))
            if self.min_attempts > facets.MAX_ATTEMPTS:
                conditions.append(sa.column("attempts") >= self.min_attempts)
        changed, duration = (sa.column(name, sa.Float) for name in ("changed", "duration"))
        for column, bucket, least, most in (
            (changed, facets.share_between, self.min_changed, self.max_changed),
            (duration, facets.duration_between, self.min_duration, self.max_duration),
        ):
            if least is None and most is None:
                continue
            parts.append(bucket(least, most))
            if least is not None:
                conditions.append(column >= least)
            if most is not None:
                conditions.append(column <= most)
        return Wanted(All(tuple(parts)), conditions)
