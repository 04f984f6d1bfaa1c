"""Statements that search. What they find are ids of documents, which `jobs.statements.found_documents` reads.

SQLite's FTS5 finds documents in the order of jobs. PostgreSQL's GIN finds all documents of a term before it returns the
first. So there a search for frequent terms looks for them within one period after another, from the newest on
(`find`), by the terms of periods that documents have (`jobs.statements.documents`). How frequent they are, and so how
long the periods should be (`jobs.statements.search_periods`), is what PostgreSQL's planner estimates.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import sqlalchemy as sa

from jobs.models import SearchDocument
from jobs.search.filters import Bounds, IndexQuery
from jobs.search.query import (
    And,
    Node,
    Not,
    Or,
    Phrase,
    Term,
    is_exact,
    needle,
    to_fts5,
    to_tsquery,
)
from jobs.statements.documents import LAST_ID, period_term
from jobs.statements.search_periods import EVERYTHING, PROBE, SearchPeriods, ids_per_document

#: The maximum number of documents to find at once if the index answers alone, the same if they are compared, and the
#: number to compare at once.
_MAX_FOUND, _MAX_CANDIDATES, _MAX_COMPARED = 2000, 1000, 300
#: The maximum number of documents that a search compares without a match before it stops.
MAX_EFFORT = 500

_documents = SearchDocument.__table__
_fts = sa.table("search_index", sa.column("rowid", sa.BigInteger))
_TERMS: sa.ColumnElement[Any] = sa.literal_column("array_to_tsvector(string_to_array(terms, ' '))")
#: Returns the number of documents, and the lowest and highest id. For the rest of the transaction it turns off plans
#: that do not use the index, and JIT compilation, which takes longer than the search.
_PLAN_BY_INDEX = sa.text(
    "SELECT reltuples::float8 AS number, (SELECT min(id) FROM search_documents) AS lowest, "
    "(SELECT max(id) FROM search_documents) AS highest, set_config('enable_seqscan', 'off', true), "
    "set_config('enable_indexscan', 'off', true), set_config('jit', 'off', true) "
    "FROM pg_class WHERE oid = 'search_documents'::regclass"
)

#: Allows what finds the documents at an end of a range without reading all of them.
_PLAN_FREELY = sa.text("SET LOCAL enable_indexscan = DEFAULT")


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

    The index answers most queries. Words of a phrase, and numbers at the ends of a range, are compared in the
    documents that the index finds; a search that has compared ``effort`` of them in vain stops.

    Args:
        connection: of a unit of work that reads.
        query: what is searched for.
        first, end: the lowest id, and the id after the highest one.
        newest_first: the order.
        limit: the maximum number of documents to find.
        effort: the maximum number of documents to compare in vain; with 0, a search stops before it compares one.
    """
    search = _Search(connection, query, newest_first)
    found = Found(effort=effort)
    left = search.begin(first, end, limit)
    while left:
        ordered = search.is_ordered or left.level == 0
        low, high = left.period()
        most = search.maximum(limit - len(found.ids))
        ids = search.candidates(low, high, left.level, most, ordered=ordered)
        if len(ids) >= most:
            if not ordered:
                # The newest (or oldest) of them may be among those that were left out.
                left.shorten(most)
                continue
            low, high = (ids[-1], high) if newest_first else (low, ids[-1] + 1)
        ids.sort(reverse=newest_first)
        if ids and found.effort <= 0 and not search.is_exact:
            found.stopped_at = left.end if newest_first else left.first
            return found
        for compared in search.matches(ids):
            found.ids += compared.matching
            if len(found.ids) >= limit:
                del found.ids[limit:]
                return found
            found.effort -= len(compared.ids) - len(compared.matching)
            last = compared.ids[-1]
            if found.effort <= 0 and last != ids[-1]:
                found.stopped_at = last if newest_first else last + 1
                return found
        left.limit = limit - len(found.ids)
        most = search.maximum(left.limit)
        if ids or search.is_ordered or left.level == EVERYTHING:
            left.advance(low, high, len(ids), most)
        else:
            left.skip(search.next_documents(left), most)
        if found.effort <= 0 and left:
            found.stopped_at = left.end if newest_first else left.first
            return found
    return found


class _Compared(NamedTuple):
    """Documents that were compared."""

    ids: list[int]
    matching: list[int]


class _Search:
    """The statements of one search, for either database."""

    def __init__(self, connection: sa.Connection, query: IndexQuery, newest_first: bool) -> None:
        self._connection = connection
        self._node = query.node
        self._newest_first = newest_first
        self._sqlite = connection.dialect.name == "sqlite"
        conditions = [each for bounds in query.bounds for each in _within(bounds)]
        if not is_exact(query.node):
            contains = sa.func.instr if self._sqlite else sa.func.strpos
            words = sa.column("words", sa.Text)
            conditions.append(_compared(query.node, lambda text: contains(words, text) > 0))
        self._condition = sa.and_(sa.true(), *conditions) if conditions else None
        #: Whether documents of any period come in order.
        self.is_ordered = self._sqlite

    @property
    def is_exact(self) -> bool:
        """Whether the index alone answers the query."""
        return self._condition is None

    def maximum(self, limit: int) -> int:
        """Return the maximum number of candidates at once, if ``limit`` matches are needed."""
        if self._condition is not None:
            return _MAX_COMPARED if self.is_ordered else _MAX_CANDIDATES
        return limit if self.is_ordered else _MAX_FOUND

    def begin(self, first: int, end: int, limit: int) -> SearchPeriods:
        """Return the part of a range that has documents, and its first period.

        A period is to have about as many matches as are needed.
        """
        left = SearchPeriods(first, end, self._newest_first)
        if self._sqlite:
            return left
        ids = self._first_ids(left)
        documents = self._connection.execute(_PLAN_BY_INDEX).one()
        if not ids:
            left.end = left.first
            return left
        # Skip the periods without documents at the ends, of which there may be many.
        if self._newest_first:
            left.first, left.end = max(first, int(documents.lowest)), ids[0] + 1
        else:
            left.first, left.end = ids[0], min(end, int(documents.highest) + 1)
        # Fewer if the maximum is small, since there may be only a few more documents.
        left.levels_back = 4 if self._condition is None else 2
        left.span = int(documents.highest) + 1 - int(documents.lowest)
        match = sa.select(sa.true()).where(self._found_by(self._node))
        left.matches = self._estimate(match.select_from(_documents))
        left.documents, left.ids_per_document = documents.number, ids_per_document(ids)
        left.limit = limit
        left.begin(self.maximum(limit), is_short=len(ids) < PROBE)
        return left

    def next_documents(self, left: SearchPeriods) -> list[int]:
        """Return the ids of the first documents of what is left, in the order of the search, up to `PROBE` of them."""
        ids = self._first_ids(left)
        self._connection.execute(_PLAN_BY_INDEX)
        return ids

    def _first_ids(self, left: SearchPeriods) -> list[int]:
        # A statement before this one in the transaction may have left index scans off.
        self._connection.execute(_PLAN_FREELY)
        key = _documents.c.id
        query = sa.select(key).where(key >= left.first, key < left.end)
        return list(self._connection.scalars(self._in_order(query, key).limit(PROBE)))

    def _estimate(self, query: sa.Select[bool]) -> float:
        """Return how many rows PostgreSQL's planner expects."""
        compiled = query.compile(dialect=self._connection.dialect)
        plan = self._connection.exec_driver_sql(
            f"EXPLAIN (FORMAT JSON) {compiled}", compiled.params
        ).scalar_one()
        return float(plan[0]["Plan"]["Plan Rows"])

    def _found_by(self, node: Node) -> sa.ColumnElement[bool]:
        return _TERMS.op("@@", is_comparison=True)(sa.cast(to_tsquery(node), _TSQuery))

    def candidates(self, low: int, high: int, level: int, most: int, *, ordered: bool) -> list[int]:
        """Return up to ``most`` documents that the index finds in a part of a period."""
        if self._sqlite:
            key: sa.ColumnElement[int] = _fts.c.rowid
            query = sa.select(key.label("id")).where(
                sa.literal_column("search_index").op("MATCH")(to_fts5(self._node)),
                key >= low,
                key < high,
            )
        else:
            node = self._node
            if level < EVERYTHING:
                node = And((node, Term(period_term(level, low))))
            key = _documents.c.id
            # The sum keeps the planner from reading the documents of the range.
            query = sa.select(key.label("id")).where(
                self._found_by(node),
                key + sa.literal_column("0") >= low,
                key + sa.literal_column("0") < high,
            )
        if ordered:
            query = self._in_order(query, key)
        return list(self._connection.scalars(query.limit(most)))

    def matches(self, ids: list[int]) -> Iterator[_Compared]:
        """Compare documents that the index has found, some at a time."""
        if self._condition is None:
            if ids:
                yield _Compared(ids, ids)
            return
        for start in range(0, len(ids), _MAX_COMPARED):
            some = ids[start : start + _MAX_COMPARED]
            found = sa.select(_documents.c.id).where(_is_any(self._connection, some))
            matching = set(self._connection.scalars(found.where(self._condition)))
            yield _Compared(some, [each for each in some if each in matching])

    def _in_order(self, query: sa.Select[int], key: sa.ColumnElement[int]) -> sa.Select[int]:
        return query.order_by(key.desc() if self._newest_first else key.asc())


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


class _TSQuery(sa.types.UserDefinedType[str]):
    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "tsquery"


def _compared(
    node: Node, contains: Callable[[str], sa.ColumnElement[bool]]
) -> sa.ColumnElement[bool]:
    """Return the condition that a job's words match a query; `jobs.search.query.has` in SQL."""
    match node:
        case Phrase():
            return contains(needle(node))
        case Not(of):
            return sa.not_(_compared(of, contains))
        case And(of):
            return sa.and_(sa.true(), *(_compared(part, contains) for part in of))
        case Or(of):
            # Facets are in the index alone, which has them exactly.
            return sa.or_(sa.false(), *(_compared(part, contains) for part in of))
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
