"""The query parameters of statistics, for the API and for the page."""

from __future__ import annotations

import re
from dataclasses import replace

from flask import request

from jobs.protocol.errors import invalid_value
from jobs.use_cases import statistics
from jobs.use_cases.statistics import By, Period, Query, Statistics
from web import job_filters, query
from web.job_filters import METADATA
from web.services import get_services

PARAMETERS = ("adapter", "by", "compare", "model", "owner", "since", "until")
#: The characters of a name or digest in `compare`.
MAX_NAME = 500
#: How a period in `compare` begins, and a name of a folder does not: a date, and another one after the slash.
PERIOD = re.compile(r"\d{4}-\d\d-\d\d[^/]*/\d{4}-\d\d-\d\d")


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
    if text.startswith(METADATA):
        return By.METADATA, text.removeprefix(METADATA)
    known = [by.value for by in By if by is not By.METADATA]
    if text and text not in known:
        raise invalid_value("by", f"`by` must be one of: {', '.join(known)}, metadata.KEY.")
    return (By(text) if text else None), ""


def _compare() -> tuple[str, str] | tuple[Period, Period] | None:
    text = request.args.get("compare", "")
    if not text:
        return None
    names = [name.strip() for name in text.split(",")]
    if len(names) != 2 or not all(1 <= len(name) <= MAX_NAME for name in names):
        raise invalid_value(
            "compare",
            "`compare` must be two digests, names of adapters, or periods such as 2026-01-01/2026-02-01, separated by a "
            "comma.",
        )
    first, second = names
    if all(PERIOD.match(name) for name in names):
        return _period(first), _period(second)
    return first, second


def _period(text: str) -> Period:
    """Return a period: ISO 8601's interval."""
    since, _, until = text.partition("/")
    period = Period(text, query.parse_time("compare", since), query.parse_time("compare", until))
    if period.since >= period.until:
        raise invalid_value("compare", "A period in `compare` must end later than it begins.")
    return period
