"""Statements that search. What they find are ids of documents, which `jobs.statements.found_documents` reads.

The index finds candidates (`jobs.statements.search_candidates`). Words of a phrase, and numbers at the ends of a range,
are compared here in the candidates' documents.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import sqlalchemy as sa

from jobs.models import SearchDocument
from jobs.search.filters import Bounds, IndexQuery
from jobs.search.query import And, Node, Not, Or, Phrase, Term, is_exact, needle
from jobs.statements import search_candidates
from jobs.statements.documents import LAST_ID
from jobs.statements.search_periods import IdRange

#: The maximum number of documents that a search compares without a match before it stops.
MAX_EFFORT = 500

_documents = SearchDocument.__table__


@dataclass
class Found:
    """What a search found."""

    #: Ids of documents, in order.
    ids: list[int] = field(default_factory=list)
    #: The id up to which it searched, if it gave up; None if it found enough, or searched all.
    stopped_at: int | None = None
    #: What is left of the effort.
    effort: int = MAX_EFFORT


def find(
    connection: sa.Connection,
    query: IndexQuery,
    *,
    first: int = 0,
    end: int = LAST_ID,
    newest_first: bool = True,
    limit: int,
    effort: int = MAX_EFFORT,
) -> Found:
    """Search documents, those of the newest jobs first or those of the oldest.

    The index answers most queries. A search that has compared ``effort`` candidates in vain stops.

    Args:
        connection: of a unit of work that reads.
        query: what is searched for.
        first, end: the lowest id, and the id after the highest one.
        newest_first: the order.
        limit: the maximum number of documents to find.
        effort: the maximum number of documents to compare in vain; with 0, a search stops before it compares one.
    """
    condition = _condition(connection, query)
    found = Found(effort=effort)
    left = IdRange(first, end, newest_first)
    for part in search_candidates.candidates(
        connection,
        query.node,
        left,
        is_exact=condition is None,
        needed=lambda: limit - len(found.ids),
    ):
        if part.ids and found.effort <= 0 and condition is not None:
            found.stopped_at = part.begin
            return found
        for compared in _compare(connection, part.ids, condition):
            found.ids += compared.matching
            if len(found.ids) >= limit:
                del found.ids[limit:]
                return found
            found.effort -= len(compared.ids) - len(compared.matching)
            last = compared.ids[-1]
            if found.effort <= 0 and last != part.ids[-1]:
                found.stopped_at = left.after(last)
                return found
        if found.effort <= 0 and part.rest is not None:
            found.stopped_at = part.rest
            return found
    return found


class _Compared(NamedTuple):
    """Candidates that were compared, and those of them that match."""

    ids: list[int]
    matching: list[int]


def _compare(
    connection: sa.Connection, ids: list[int], condition: sa.ColumnElement[bool] | None
) -> Iterator[_Compared]:
    """Compare candidates, some at a time. Without a condition all of them match."""
    if condition is None:
        if ids:
            yield _Compared(ids, ids)
        return
    at_once = search_candidates.MAX_COMPARED
    for start in range(0, len(ids), at_once):
        some = ids[start : start + at_once]
        query = sa.select(_documents.c.id).where(_is_any(connection, some), condition)
        matching = set(connection.scalars(query))
        yield _Compared(some, [each for each in some if each in matching])


def _condition(connection: sa.Connection, query: IndexQuery) -> sa.ColumnElement[bool] | None:
    """Return what candidates must fulfil; None if the index alone answers the query."""
    conditions = [each for bounds in query.bounds for each in _within(bounds)]
    if not is_exact(query.node):
        contains = sa.func.instr if connection.dialect.name == "sqlite" else sa.func.strpos
        words = sa.column("words", sa.Text)
        conditions.append(_matches_words(query.node, lambda text: contains(words, text) > 0))
    return sa.and_(*conditions) if conditions else None


def _is_any(connection: sa.Connection, ids: Collection[int]) -> sa.ColumnElement[bool]:
    """Return the condition that a document's id is one of many, as one parameter: hundreds take long to compile."""
    if connection.dialect.name == "postgresql":
        array = sa.literal(list(ids), sa.ARRAY(sa.BigInteger))
        return _documents.c.id == sa.any_(array)
    each = sa.func.json_each(json.dumps(list(ids))).table_valued("value")
    return _documents.c.id.in_(sa.select(each.c.value))


def _within(bounds: Bounds) -> Iterator[sa.ColumnElement[bool]]:
    """Yield the conditions that a number of a document is in a range."""
    column = _documents.c[bounds.column]
    if bounds.least is not None:
        yield column >= bounds.least
    if bounds.most is not None:
        yield column <= bounds.most


def _matches_words(
    node: Node, contains: Callable[[str], sa.ColumnElement[bool]]
) -> sa.ColumnElement[bool]:
    """Return the condition that a job's words match a query; `jobs.search.query.has` in SQL."""
    match node:
        case Phrase():
            return contains(needle(node))
        case Not(of):
            return sa.not_(_matches_words(of, contains))
        case And(of):
            return sa.and_(sa.true(), *(_matches_words(part, contains) for part in of))
        case Or(of):
            # Facets are in the index alone, which has them exactly.
            return sa.or_(sa.false(), *(_matches_words(part, contains) for part in of))
        case Term():
            return sa.true()


def words_of(connection: sa.Connection, ids: Collection[int]) -> dict[int, str]:
    """Return the words of documents, by their ids."""
    query = sa.select(_documents.c.id, _documents.c.words).where(_is_any(connection, ids))
    return {row.id: row.words for row in connection.execute(query)}


def numbers_of(
    connection: sa.Connection, ids: Collection[int], column: Literal["changed", "duration"]
) -> dict[int, float]:
    """Return a number of documents, by their ids. Those that lack it are left out."""
    number = _documents.c[column]
    query = sa.select(_documents.c.id, number).where(_is_any(connection, ids), number.is_not(None))
    return {row[0]: row[1] for row in connection.execute(query)}
