"""Statements on rollups: adding jobs and taking them off, and reading a range.

Rollups are changed after the rows of their jobs, in the order of their keys, so that two transactions that do it
wait for each other and seldom conflict.
"""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa

from jobs.models import Job, Rollup, RollupModel
from jobs.statements.inserting import insert
from jobs.statements.jobs import IndexedFilters
from jobs.statistics.counted import Counted
from jobs.statistics.periods import Level, Run, start_of
from jobs.statistics.tally import Tally

#: Stands for all owners, and for no model.
ALL_OWNERS, NO_MODEL = "", ""
#: The owners of one statement.
_MAX_IN = 500

_KEY = (Rollup.owner, Rollup.level, Rollup.start, Rollup.model)
_ROLLUPS = Rollup.__table__
_IS_KEY = sa.and_(*(column == sa.bindparam(f"key_{column.key}") for column in _KEY))
_UPDATE = (
    sa.update(_ROLLUPS)  # type: ignore[arg-type]  # a table
    .where(_IS_KEY)
    .values(jobs=sa.bindparam("new_jobs"), tally=sa.bindparam("new_tally"))
)
_DELETE = sa.delete(_ROLLUPS).where(_IS_KEY)  # type: ignore[arg-type]  # a table


class Change(NamedTuple):
    """What a job counts for from now on, and counted for until now."""

    created_at: dt.datetime
    owner: str
    model: str | None
    #: `Job.counted`; None for nothing.
    before: dict[str, Any] | None
    after: dict[str, Any] | None


class _Key(NamedTuple):
    owner: str
    level: Level
    start: dt.datetime
    model: str


def apply(connection: sa.Connection, changes: Iterable[Change]) -> None:
    """Change the rollups of jobs, in the transaction that changes `Job.counted`."""
    deltas: dict[_Key, Tally] = {}
    for change in changes:
        if change.before == change.after:
            continue
        delta = Tally()
        if change.before is not None:
            delta.add(Counted.load(change.before), -1)
        if change.after is not None:
            delta.add(Counted.load(change.after))
        for owner in (ALL_OWNERS, change.owner):
            for level in Level:
                start = start_of(level, change.created_at)
                key = _Key(owner, level, start, change.model or NO_MODEL)
                deltas.setdefault(key, Tally()).merge(delta)
    if not deltas:
        return
    changed, emptied = [], []
    for key, tally in _locked(connection, sorted(deltas)).items():
        tally.merge(deltas[key])
        names = {f"key_{name}": value for name, value in key._asdict().items()}
        if tally.jobs:
            changed.append({**names, "new_jobs": tally.jobs, "new_tally": tally.dump()})
        else:
            emptied.append(names)
    if changed:
        connection.execute(_UPDATE, changed)
    if emptied:
        connection.execute(_DELETE, emptied)


def _locked(connection: sa.Connection, keys: list[_Key]) -> dict[_Key, Tally]:
    """Lock rollups until the transaction ends; return their tallies. Those that are missing are added."""
    found: dict[_Key, Tally] = {}
    while True:
        missing = [key for key in keys if key not in found]
        if not missing:
            return found
        # SQLAlchemy's ``IN`` of tuples knows the types of columns only one by one.
        conditions = [
            sa.and_(*(column == value for column, value in zip(_KEY, key, strict=True)))
            for key in missing
        ]
        query = sa.select(*_KEY, Rollup.tally).where(sa.or_(*conditions))
        for row in connection.execute(query.order_by(*_KEY).with_for_update()):
            found[_Key(*row[:4])] = Tally.load(row.tally)
        if new := [key for key in keys if key not in found]:
            rows = [{**key._asdict(), "jobs": 0, "tally": {}} for key in new]
            connection.execute(insert(connection, Rollup).on_conflict_do_nothing(), rows)


def add_models(connection: sa.Connection, described: Mapping[str, dict[str, Any]]) -> None:
    """Add the descriptions of models that have none."""
    rows = [
        {"model": model, "description": description}
        for model, description in sorted(described.items())
    ]
    if rows:
        connection.execute(insert(connection, RollupModel).on_conflict_do_nothing(), rows)


def models(connection: sa.Connection) -> dict[str, dict[str, Any]]:
    """Return the descriptions of all models that were counted."""
    rows = connection.execute(sa.select(RollupModel.model, RollupModel.description))
    return {row.model: row.description for row in rows}


def read(
    connection: sa.Connection, owner: str | None, runs: Iterable[Run]
) -> list[sa.Row[dt.datetime, str, dict[str, Any]]]:
    """Return start, model and tally of rollups.

    Args:
        connection: of a unit of work that reads.
        owner: of the jobs; None for all.
        runs: the periods.
    """
    whose = ALL_OWNERS if owner is None else owner
    rows: list[sa.Row[dt.datetime, str, dict[str, Any]]] = []
    for run in runs:
        query = sa.select(Rollup.start, Rollup.model, Rollup.tally).where(
            Rollup.owner == whose,
            Rollup.level == run.level,
            Rollup.start >= run.first,
            Rollup.start < run.end,
        )
        rows += connection.execute(query.order_by(Rollup.start, Rollup.model))
    return rows


def owners(connection: sa.Connection) -> list[str]:
    """Return all owners with jobs. It reads an index entry for each, however many rollups there are."""
    first = sa.select(sa.func.min(Rollup.owner).label("owner")).where(Rollup.owner > ALL_OWNERS)
    found = first.cte("owners", recursive=True)
    following = (
        sa.select(sa.func.min(Rollup.owner)).where(Rollup.owner > found.c.owner).scalar_subquery()
    )
    found = found.union_all(sa.select(following).where(found.c.owner.is_not(None)))
    return list(connection.scalars(sa.select(found.c.owner).where(found.c.owner.is_not(None))))


def count_by_owner(
    connection: sa.Connection,
    owners: Sequence[str],
    runs: Sequence[Run],
    models: Collection[str] | None,
) -> dict[str, int]:
    """Return the number of jobs of each of some owners that has any.

    Args:
        connection: of a unit of work that reads.
        owners: whose jobs.
        runs: the periods.
        models: of the jobs; None for all.
    """
    counts: Counter[str] = Counter()
    for start in range(0, len(owners), _MAX_IN):
        some = owners[start : start + _MAX_IN]
        for run in runs:
            query = sa.select(Rollup.owner, sa.func.sum(Rollup.jobs).label("jobs")).where(
                Rollup.owner.in_(some),
                Rollup.level == run.level,
                Rollup.start >= run.first,
                Rollup.start < run.end,
            )
            if models is not None:
                query = query.where(Rollup.model.in_(models))
            for row in connection.execute(query.group_by(Rollup.owner)):
                counts[row.owner] += int(row.jobs)
    return dict(counts)


def first_hour(connection: sa.Connection, owner: str | None) -> dt.datetime | None:
    """Return the start of the first hour with jobs; None if there are no jobs."""
    whose = ALL_OWNERS if owner is None else owner
    query = sa.select(Rollup.start).where(Rollup.owner == whose, Rollup.level == Level.HOUR)
    return connection.scalar(query.order_by(Rollup.start).limit(1))


def any_of_others(connection: sa.Connection, owner: str) -> bool:
    """Return whether there are jobs of another owner."""
    # The ends of an index, however many rollups there are.
    others = (sa.func.min(Rollup.owner), sa.func.max(Rollup.owner))
    ends = [sa.select(end).where(Rollup.owner > ALL_OWNERS).scalar_subquery() for end in others]
    found = connection.execute(sa.select(*ends)).one()
    return bool({*found} - {owner, None})


def list_counted(
    connection: sa.Connection, filters: IndexedFilters, limit: int
) -> list[sa.Row[str | None, dict[str, str], dict[str, Any] | None]]:
    """Return model, metadata and what they count for of jobs that meet filters, up to ``limit``."""
    columns = (Job.model, Job.metadata_.label("pairs"), Job.counted)
    query = filters.select().with_only_columns(*columns)
    return list(connection.execute(query.order_by(Job.created_at, Job.id).limit(limit)))
