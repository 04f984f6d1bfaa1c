"""The query parameters of statistics, for the API and for the page."""

from __future__ import annotations

from dataclasses import replace

from flask import request

from jobs.protocol.errors import invalid_value
from jobs.use_cases import statistics
from jobs.use_cases.statistics import By, Query, Statistics
from web import job_filters, query
from web.job_filters import METADATA
from web.services import get_services

PARAMETERS = ("adapter", "by", "compare", "model", "owner", "since", "until")
#: The characters of a name or digest in `compare`.
MAX_NAME = 500


def wanted() -> Query:
    """Return which statistics the current request asks for.

    Raises:
        InvalidRequestError: a parameter is unknown, given twice or has a wrong value.
    """
    query.check_names("parameter", PARAMETERS)
    by, key = _by()
    since, until = query.times()
    return Query(
        since=since,
        until=until,
        by=by,
        key=key,
        owner=job_filters.owner(),
        model=job_filters.model(),
        adapter=query.given("adapter"),
        compare=_compare(),
    )


def by_day(wanted: Query) -> Query:
    """Return the same query, grouped by day."""
    return replace(wanted, by=By.DAY)


def find(wanted: Query, max_periods: int = statistics.MAX_PERIODS) -> Statistics:
    """Return the statistics of jobs that the caller may read.

    Args:
        wanted: which ones.
        max_periods: the maximum number of hours or days.

    Raises:
        StatisticsError: the range is empty or too long, or there is nothing to compare.
    """
    services = get_services()
    return statistics.read(
        services.database, services.readable_owner, wanted, max_periods=max_periods
    )


def _by() -> tuple[By | None, str]:
    text = request.args.get("by", "")
    if text.startswith(METADATA) and text != METADATA:
        return By.METADATA, text.removeprefix(METADATA)
    known = [by.value for by in By if by is not By.METADATA]
    if text and text not in known:
        raise invalid_value("by", f"`by` must be one of: {', '.join(known)}, metadata.KEY.")
    return (By(text) if text else None), ""


def _compare() -> tuple[str, str] | None:
    text = request.args.get("compare", "")
    if not text:
        return None
    names = [name.strip() for name in text.split(",")]
    if len(names) != 2 or not all(1 <= len(name) <= MAX_NAME for name in names):
        raise invalid_value(
            "compare", "`compare` must be two digests or names of adapters, separated by a comma."
        )
    return names[0], names[1]
