"""Reading statistics of ended jobs, from their rollups.

A query reads the rows of its range's periods, however many jobs ended in them. Only groups by metadata, of which there
may be as many as jobs, are made from the jobs themselves, up to a maximum.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

import sqlalchemy as sa

from jobs import adapter_names
from jobs.database import Database
from jobs.errors import StatisticsError
from jobs.models import OPEN, Status
from jobs.statements import clock, documents, listing, rollups
from jobs.statements.jobs import IndexedFilters
from jobs.statements.rollups import NO_MODEL
from jobs.statistics.counted import Counted
from jobs.statistics.periods import FIRST, LAST, Level, Run, at_or_after, cover, start_of
from jobs.statistics.tally import Tally
from jobs.use_cases.owners import narrow

#: The maximum number of hours or days of one reading.
MAX_PERIODS = 800
#: The maximum number of jobs that groups by metadata are made from.
MAX_JOBS = 5_000
#: The number of values of metadata, and of owners, that have a group of their own.
MAX_VALUES = 100
#: Open jobs are counted up to this number.
MAX_OPEN = 1000

_HOUR, _DAY = dt.timedelta(hours=1), dt.timedelta(days=1)


class By(StrEnum):
    """What jobs are grouped by."""

    HOUR = "hour"
    DAY = "day"
    MODEL = "model"
    ADAPTER = "adapter"
    OWNER = "owner"
    METADATA = "metadata"


class Period(NamedTuple):
    """A range of time to compare with another one, widened to whole hours."""

    #: As it was asked for.
    name: str
    #: The jobs were created from ``since`` on, and before ``until``.
    since: dt.datetime
    until: dt.datetime


@dataclass(frozen=True)
class Query:
    """Which statistics are read."""

    #: The jobs were created from ``since`` on, and before ``until``. None for the default.
    since: dt.datetime | None = None
    until: dt.datetime | None = None
    by: By | None = None
    #: The key, of groups by metadata.
    key: str = ""
    #: Only jobs of this owner.
    owner: str | None = None
    #: Only jobs of this model, and of models with this adapter: its name or its digest.
    model: str | None = None
    adapter: str | None = None
    #: Two models or adapters, each by its digest or an adapter's name; or two periods, whatever the range is.
    compare: tuple[str, str] | tuple[Period, Period] | None = None


class AdapterKey(NamedTuple):
    """An adapter of a role."""

    role: str
    name: str
    digest: str


#: What the jobs of a group have in common: the start of a period, a model, an adapter, an owner, a value of metadata.
#: None for a missing one.
Key = dt.datetime | str | AdapterKey | None


@dataclass
class Side:
    """One side of a comparison."""

    name: str
    #: Which it stands for. Of a period: those that jobs were answered by.
    models: list[str]
    #: None for all jobs of the range.
    period: Period | None = None
    tally: Tally = field(default_factory=Tally)


@dataclass
class Statistics:
    """What was read."""

    query: Query
    #: The range, as whole hours or days.
    since: dt.datetime
    until: dt.datetime
    total: Tally
    #: Those without jobs are left out.
    groups: dict[Key, Tally]
    #: The values of metadata or owners that have no group of their own, and their sum.
    other_values: int
    others: Tally
    #: Jobs that have not ended, up to `MAX_OPEN` of each status.
    open: dict[Status, int]
    #: Whether all jobs that have ended are counted.
    is_current: bool
    #: The jobs of each model.
    by_model: dict[str, Tally]
    #: What workers said of models.
    models: dict[str, dict[str, Any]]
    compared: tuple[Side, Side] | None


@dataclass
class _Groups:
    """The groups, and the number and the sum of those that are left out."""

    of: dict[Key, Tally] = field(default_factory=dict)
    left_out: int = 0
    others: Tally = field(default_factory=Tally)


class _Part(NamedTuple):
    """Jobs of a model that have a period in common, or a value of metadata."""

    model: str
    #: When the period starts, or the value.
    common: dt.datetime | str | None
    tally: Tally


def read(
    database: Database,
    owner: str | None,
    query: Query,
    *,
    max_periods: int = MAX_PERIODS,
    max_jobs: int = MAX_JOBS,
) -> Statistics:
    """Return statistics of an owner's jobs that have ended.

    Args:
        database: of the jobs.
        owner: of the jobs; None for all.
        query: what is read.
        max_periods: as `MAX_PERIODS`.
        max_jobs: as `MAX_JOBS`.

    Raises:
        StatisticsError: the range is empty or too long, or there is nothing to compare.
    """
    any_meant, whose = narrow(owner, query.owner)
    with database.read() as connection:
        since, until = _range(connection, whose, query, max_periods)
        models = rollups.models(connection)
        compared = _sides(query.compare, models)
        parts: list[_Part] = []
        groups = _Groups()
        open_jobs = dict.fromkeys(OPEN, 0)
        if any_meant:
            filters, runs = IndexedFilters(whose, since, until), _runs(query, since, until)
            if query.by is By.METADATA:
                parts = _parts_of_jobs(connection, filters, query.key, max_jobs)
            else:
                parts = _parts_of_periods(connection, whose, runs)
            if query.by is By.OWNER:
                groups = _by_owner(connection, whose, runs, query, models)
            for side in compared or ():
                _add_period(connection, whose, side, query, models)
            open_jobs = listing.count_by_status(connection, filters, OPEN, MAX_OPEN)
        is_current = not documents.any_unindexed(connection)
    parts = [part for part in parts if _is_wanted(part.model, query, models)]
    by_model: dict[str, Tally] = {}
    for part in parts:
        _merge(by_model, part.model, part.tally)
    total = _total(by_model, compared)
    if query.by is By.OWNER:
        groups.others = _without(total, groups.of)
    else:
        groups = _grouped(query.by, parts, by_model, models)
    return Statistics(
        query=query,
        since=since,
        until=until,
        total=total,
        groups=groups.of,
        other_values=groups.left_out,
        others=groups.others,
        open=open_jobs,
        is_current=is_current,
        by_model=by_model,
        models=models,
        compared=compared,
    )


def _total(by_model: Mapping[str, Tally], compared: tuple[Side, Side] | None) -> Tally:
    """Return the sum of all models, and add those that are compared to their sides."""
    total = Tally()
    for model, tally in by_model.items():
        total.merge(tally)
        for side in compared or ():
            if side.period is None and model in side.models:
                side.tally.merge(tally)
    return total


def _grouped(
    by: By | None,
    parts: Sequence[_Part],
    by_model: Mapping[str, Tally],
    models: Mapping[str, dict[str, Any]],
) -> _Groups:
    """Return the groups, the largest first unless they are periods."""
    groups: dict[Key, Tally] = {}
    if by in (By.HOUR, By.DAY, By.METADATA):
        for part in parts:
            _merge(groups, part.common, part.tally)
    for model, tally in by_model.items():
        for key in _keys(by, model, models):
            _merge(groups, key, tally)
    if by in (By.HOUR, By.DAY):
        return _Groups(groups)
    others = Tally()
    ordered = sorted(groups.items(), key=lambda group: (-group[1].jobs, str(group[0])))
    kept = MAX_VALUES if by is By.METADATA else len(ordered)
    for _, tally in ordered[kept:]:
        others.merge(tally)
    return _Groups(dict(ordered[:kept]), len(ordered[kept:]), others)


def _by_owner(
    connection: sa.Connection,
    owner: str | None,
    runs: Sequence[Run],
    query: Query,
    models: Mapping[str, dict[str, Any]],
) -> _Groups:
    """Return the groups of the owners with the most jobs, without the sum of those left out."""
    owners = rollups.owners(connection) if owner is None else [owner]
    wanted = None
    if query.model is not None or query.adapter is not None:
        wanted = [model for model in (*models, NO_MODEL) if _is_wanted(model, query, models)]
    counts = rollups.count_by_owner(connection, owners, runs, wanted)
    ordered = sorted(counts, key=lambda name: (-counts[name], name))
    groups = _Groups(left_out=len(ordered[MAX_VALUES:]))
    for name in ordered[:MAX_VALUES]:
        for part in _parts_of_periods(connection, name, runs):
            if _is_wanted(part.model, query, models):
                _merge(groups.of, name, part.tally)
    return groups


def _without(total: Tally, groups: Mapping[Key, Tally]) -> Tally:
    """Return the sum of the jobs that are in no group."""
    rest = Tally()
    rest.merge(total)
    for tally in groups.values():
        rest.merge(tally, -1)
    return rest


def any_of_others(database: Database, owner: str) -> bool:
    """Return whether jobs of another owner have ended."""
    with database.read() as connection:
        return rollups.any_of_others(connection, owner)


def _merge(tallies: dict[Any, Tally], key: object, tally: Tally) -> None:
    """Add a tally to that of a key."""
    if (of_key := tallies.get(key)) is None:
        of_key = tallies[key] = Tally()
    of_key.merge(tally)


def _range(
    connection: sa.Connection, owner: str | None, query: Query, max_periods: int
) -> tuple[dt.datetime, dt.datetime]:
    """Return the range that is read: from a whole hour or day to another."""
    level = Level.DAY if query.by is By.DAY else Level.HOUR
    now = clock.now(connection)
    until = at_or_after(level, _within(now if query.until is None else query.until))
    if query.since is not None:
        since = start_of(level, _within(query.since))
    elif query.by is By.HOUR:
        since = until - 24 * _HOUR
    elif query.by is By.DAY:
        since = until - 30 * _DAY
    else:
        first = rollups.first_hour(connection, owner)
        since = until - _HOUR if first is None else min(first, until - _HOUR)
    if since >= until:
        default = ", which is now by default" if query.until is None else ""
        message = f"`since` must be earlier than `until`{default}."
        raise StatisticsError("since", "invalid_value", message)
    length = {By.HOUR: _HOUR, By.DAY: _DAY}.get(query.by) if query.by else None
    if length is not None and (until - since) > max_periods * length:
        raise StatisticsError(
            "since",
            "range_too_long",
            f"From `since` to `until` are more than {max_periods} {query.by}s. Choose a shorter range"
            f"{', or `by=day`' if query.by is By.HOUR else ''}.",
        )
    return since, until


def _within(moment: dt.datetime) -> dt.datetime:
    return min(max(moment, FIRST + _DAY), LAST)


def _runs(query: Query, since: dt.datetime, until: dt.datetime) -> list[Run]:
    if query.by in (By.HOUR, By.DAY):
        return [Run(Level(query.by), since, until)]
    # Before the first job and after now is nothing: whole months have the same, in fewer rows.
    first = since if query.since is not None else start_of(Level.MONTH, since)
    end = until if query.until is not None else at_or_after(Level.MONTH, until)
    return cover(first, end)


def _parts_of_periods(
    connection: sa.Connection, owner: str | None, runs: Sequence[Run]
) -> list[_Part]:
    """Return the jobs of a range, by model and period."""
    rows = rollups.read(connection, owner, runs)
    return [_Part(row.model, row.start, Tally.load(row.tally)) for row in rows]


def _parts_of_jobs(
    connection: sa.Connection, filters: IndexedFilters, key: str, max_jobs: int
) -> list[_Part]:
    """Return the jobs of a range, by their values of a key of metadata."""
    rows = rollups.list_counted(connection, filters, max_jobs + 1)
    if len(rows) > max_jobs:
        raise StatisticsError(
            "since",
            "too_many_jobs",
            f"Groups by metadata are made from up to {max_jobs:,} jobs, and from `since` to `until` are "
            "more. Choose a shorter range.",
        )
    tallies: dict[tuple[str, str | None], Tally] = {}
    for row in rows:
        if row.counted is not None:
            of = (row.model or NO_MODEL, row.pairs.get(key))
            tallies.setdefault(of, Tally()).add(Counted.load(row.counted))
    return [_Part(model, value, tally) for (model, value), tally in tallies.items()]


def _is_wanted(model: str, query: Query, models: Mapping[str, dict[str, Any]]) -> bool:
    if query.model not in (None, model):
        return False
    return query.adapter is None or _has_adapter(models.get(model, {}), query.adapter)


def _has_adapter(description: Mapping[str, Any], wanted: str) -> bool:
    """Return whether a model has an adapter that is meant by a name or a digest."""
    return any(
        adapter_names.is_meant(adapter, wanted) for adapter in adapter_names.of_model(description)
    )


def _keys(by: By | None, model: str, models: Mapping[str, dict[str, Any]]) -> list[Key]:
    """Return the groups that the jobs of a model are in."""
    if by is By.MODEL:
        return [model or None]
    if by is not By.ADAPTER:
        return []
    of_roles = models.get(model, {}).get("adapters", {})
    return [
        AdapterKey(role, adapter.get("name") or "", adapter.get("digest") or "")
        for role, adapter in of_roles.items()
    ] or [None]


def _add_period(
    connection: sa.Connection,
    owner: str | None,
    side: Side,
    query: Query,
    models: Mapping[str, dict[str, Any]],
) -> None:
    """Add the jobs of its period to a side, if it has one."""
    if side.period is None:
        return
    since = start_of(Level.HOUR, _within(side.period.since))
    until = at_or_after(Level.HOUR, _within(side.period.until))
    for part in _parts_of_periods(connection, owner, cover(since, until)):
        if _is_wanted(part.model, query, models):
            side.tally.merge(part.tally)
            if part.model != NO_MODEL and part.model not in side.models:
                side.models.append(part.model)


def _sides(
    wanted: tuple[str, str] | tuple[Period, Period] | None, models: Mapping[str, dict[str, Any]]
) -> tuple[Side, Side] | None:
    """Return which models, or which periods, are compared."""
    if wanted is None:
        return None
    first, second = (_side(each, models) for each in wanted)
    for side in (first, second):
        if side.period is None and not side.models:
            raise StatisticsError(
                "compare",
                "invalid_value",
                f"No ended job is of a model or an adapter {side.name!r}. `compare` takes two digests, "
                "names of adapters or periods, separated by a comma.",
            )
    return first, second


def _side(wanted: str | Period, models: Mapping[str, dict[str, Any]]) -> Side:
    if isinstance(wanted, Period):
        return Side(wanted.name, [], wanted)
    digest = wanted.removeprefix("sha256:")
    meant = [
        model
        for model, description in models.items()
        if model == digest or _has_adapter(description, wanted)
    ]
    return Side(wanted, meant)
