"""Statements that ask the search index. It answers with candidates: ids of documents, in the order of the search.

SQLite's FTS5 finds documents in the order of jobs. PostgreSQL's GIN finds all documents of a term before it returns the
first. So there a search for frequent terms looks for them within one period after another, from the newest on, by the
terms of periods that documents have (`jobs.statements.documents`). How frequent they are, and so how long the periods
should be (`jobs.statements.search_periods`), is what PostgreSQL's planner estimates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import sqlalchemy as sa

from jobs.models import SearchDocument
from jobs.search.query import And, Node, Term, to_fts5, to_tsquery
from jobs.statements.documents import period_term
from jobs.statements.search_estimate import MatchEstimate, ids_per_document
from jobs.statements.search_periods import EVERYTHING, PROBE, IdRange, SearchPeriods

#: The maximum number of documents to find at once if the index answers alone, the same if they are compared, and the
#: number to compare at once.
MAX_FOUND, MAX_CANDIDATES, MAX_COMPARED = 2000, 1000, 300

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


class Candidates(NamedTuple):
    """What the index finds in one part of a range: all of its candidates."""

    #: In the order of the search.
    ids: list[int]
    #: The place where the part begins (`IdRange.place`).
    begin: int
    #: The place where the rest of the range begins; None if nothing is left.
    rest: int | None


def candidates(
    connection: sa.Connection,
    node: Node,
    left: IdRange,
    *,
    is_exact: bool,
    needed: Callable[[], int],
) -> Iterator[Candidates]:
    """Yield the candidates of one part of a range after another.

    Args:
        connection: of a unit of work that reads.
        node: what is searched for.
        left: the range. It gets shorter meanwhile.
        is_exact: whether all candidates match.
        needed: returns the number of matches that are still needed.
    """
    if connection.dialect.name == "sqlite":
        return _from_fts5(connection, node, left, needed() if is_exact else MAX_COMPARED)
    return _GIN(connection, node, left, is_exact=is_exact).candidates(needed)


def _from_fts5(
    connection: sa.Connection, node: Node, left: IdRange, most: int
) -> Iterator[Candidates]:
    key = _fts.c.rowid
    matches = sa.literal_column("search_index").op("MATCH")(to_fts5(node))
    while left:
        query = sa.select(key).where(matches, key >= left.first, key < left.end)
        ids = list(connection.scalars(_in_order(query, key, left).limit(most)))
        begin = left.place
        left.place = left.after(ids[-1]) if len(ids) >= most else left.last_place
        yield Candidates(ids, begin, left.place if left else None)


class _GIN:
    """The statements of one search on PostgreSQL."""

    def __init__(
        self, connection: sa.Connection, node: Node, left: IdRange, *, is_exact: bool
    ) -> None:
        self._connection = connection
        self._node = node
        self._left = left
        self._is_exact = is_exact

    def candidates(self, needed: Callable[[], int]) -> Iterator[Candidates]:
        left, periods = self._left, self._periods(needed())
        while left:
            # The shortest periods cannot be shortened, so their documents are sorted to read some of them.
            ordered = periods.level == 0
            ids = self._find(periods, ordered=ordered)
            begin, place = left.place, periods.end_of_period()
            if len(ids) >= periods.most:
                if not ordered:
                    # The newest (or oldest) of them may be among those that were left out.
                    periods.shorten()
                    continue
                place = left.after(ids[-1])
            ids.sort(reverse=left.newest_first)
            if ids or periods.level == EVERYTHING:
                yield Candidates(ids, begin, None if left.is_end(place) else place)
                periods.limit = needed()
                periods.advance(place, len(ids))
            else:
                next_documents = self._first_ids()
                self._connection.execute(_PLAN_BY_INDEX)
                periods.skip(next_documents)
                yield Candidates([], begin, left.place if left else None)

    def _periods(self, limit: int) -> SearchPeriods:
        """Leave the part of the range that has documents, and choose its first period.

        A period is to have about as many matches as are needed.
        """
        left, estimate = self._left, MatchEstimate()
        most = MAX_FOUND if self._is_exact else MAX_CANDIDATES
        # Fewer if the maximum is small, since there may be only a few more documents.
        levels_back = 4 if self._is_exact else 2
        periods = SearchPeriods(left, estimate, limit, most, levels_back=levels_back)
        ids = self._first_ids()
        documents = self._connection.execute(_PLAN_BY_INDEX).one()
        if not ids:
            left.place = left.last_place
            return periods
        # Skip the periods without documents at the ends, of which there may be many.
        left.place = left.before(ids[0])
        if left.newest_first:
            left.first = max(left.first, int(documents.lowest))
        else:
            left.end = min(left.end, int(documents.highest) + 1)
        estimate.span = int(documents.highest) + 1 - int(documents.lowest)
        estimate.matches = self._estimated_matches()
        estimate.documents = documents.number
        estimate.ids_per_document = ids_per_document(ids)
        periods.begin(is_short=len(ids) < PROBE)
        return periods

    def _first_ids(self) -> list[int]:
        """Return the ids of the first documents that are left, in the order of the search, up to `PROBE` of them."""
        # A statement before this one in the transaction may have left index scans off.
        self._connection.execute(_PLAN_FREELY)
        key = _documents.c.id
        query = sa.select(key).where(key >= self._left.first, key < self._left.end)
        return list(self._connection.scalars(_in_order(query, key, self._left).limit(PROBE)))

    def _estimated_matches(self) -> float:
        """Return how many documents PostgreSQL's planner expects to match."""
        query = sa.select(sa.true()).where(_has(self._node)).select_from(_documents)
        compiled = query.compile(dialect=self._connection.dialect)
        plan = self._connection.exec_driver_sql(
            f"EXPLAIN (FORMAT JSON) {compiled}", compiled.params
        ).scalar_one()
        return float(plan[0]["Plan"]["Plan Rows"])

    def _find(self, periods: SearchPeriods, *, ordered: bool) -> list[int]:
        """Return the ids that the index finds in the next period, up to the maximum."""
        low, high = periods.period()
        node = self._node
        if periods.level < EVERYTHING:
            node = And((node, Term(period_term(periods.level, low))))
        key = _documents.c.id
        # The sum keeps the planner from reading the documents of the range.
        query = sa.select(key).where(
            _has(node),
            key + sa.literal_column("0") >= low,
            key + sa.literal_column("0") < high,
        )
        if ordered:
            query = _in_order(query, key, self._left)
        return list(self._connection.scalars(query.limit(periods.most)))


def _in_order(query: sa.Select[int], key: sa.ColumnElement[int], left: IdRange) -> sa.Select[int]:
    return query.order_by(key.desc() if left.newest_first else key.asc())


class _TSQuery(sa.types.UserDefinedType[str]):
    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "tsquery"


def _has(node: Node) -> sa.ColumnElement[bool]:
    return _TERMS.op("@@", is_comparison=True)(sa.cast(to_tsquery(node), _TSQuery))
