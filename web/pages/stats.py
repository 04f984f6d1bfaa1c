"""The page of statistics: a form, charts, and tables with the same figures. Range and groups are in the address."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any, NamedTuple

from flask import redirect, render_template, request, url_for
from markupsafe import Markup
from werkzeug.wrappers import Response

from jobs.enums import Order
from jobs.errors import StatisticsError
from jobs.models import Status
from jobs.pipeline import Role
from jobs.protocol import stats as protocol
from jobs.protocol.errors import InvalidRequestError, translate
from jobs.statistics.periods import Level, starts
from jobs.times import rfc3339
from jobs.use_cases import statistics
from jobs.use_cases.statistics import By, Query, Statistics
from web import statistics_query
from web.caller import get_caller
from web.job_filters import METADATA
from web.pages import charts
from web.pages.charts import Interval, Series
from web.pages.complaints import message_of
from web.pages.figures import formatter, number, percent, points, seconds, signed
from web.pages.marks import plain
from web.pages.model_names import ModelNames
from web.pages.view import STATUSES
from web.services import get_services
from web.statistics_query import PERIOD

#: The maximum number of hours or days of a page, of those in its tables (the last ones), and of other groups.
MAX_PERIODS, MAX_ROWS, MAX_GROUPS = 170, 48, 30
GROUPINGS = (
    ("hour", "Hour"),
    ("day", "Day"),
    ("model", "Model"),
    ("adapter", "Adapter"),
    ("owner", "Owner"),
    ("metadata", "Metadata"),
)
#: The labels of the form's fields, by their parameters.
LABELS = {
    "by": "Grouped by",
    "since": "Created since (UTC)",
    "until": "Created before (UTC)",
    "adapter": "Adapter",
    "model": "Model",
    "owner": "Owner",
    "compare": "Compare",
}
ENDED = tuple(status for status in Status if status.final)
#: What measures are called.
NAMES = {
    "queue_wait": "Wait in the queue",
    "duration": "From acceptance to end",
    "changed": "Words changed",
    "time": "time",
    "first_token": "time to first token",
    "prompt_tokens": "prompt tokens",
    "output_tokens": "tokens written",
    "rate": "tokens a second",
    "completed": "Completed",
    "regeneration_better": "Regeneration rated +1",
    "regeneration_worse": "Regeneration rated -1",
    "critique_right": "Critique rated +1",
}


class Row(NamedTuple):
    """A group in the tables."""

    label: str
    #: As `jobs.protocol.stats.figures` returns them.
    figures: dict[str, Any]


class Listed(NamedTuple):
    """A list of jobs that the figures are about."""

    name: str
    #: Of its jobs; None for an order of all.
    jobs: int | None
    url: str


class Compared(NamedTuple):
    """A measure of two models in the table."""

    name: str
    first: str
    second: str
    difference: str
    #: What the interval says.
    verdict: str


def show() -> Response | str | tuple[str, int]:
    """Show statistics: by day, unless something else is asked for."""
    given = request.args.to_dict()
    stated = _stated(given)
    if stated != given:  # A form sends what was left empty, and fields that are one parameter.
        return redirect(url_for("pages.stats", **stated), code=303)  # type: ignore[arg-type]  # names of parameters
    read, message, wrong = None, None, None
    try:
        wanted = statistics_query.wanted()
        if wanted.by is None:
            wanted = statistics_query.by_day(wanted)
        read = statistics_query.find(wanted, max_periods=MAX_PERIODS)
    except (InvalidRequestError, StatisticsError) as error:
        told = translate(error)
        message, wrong = message_of(told, LABELS), told.param
    by = stated.get("by", "day")
    names_owners = _names_owners(stated)
    first, second = (name.strip() for name in f"{stated.get('compare', '')},".split(",")[:2])
    text = render_template(
        "stats.html",
        given=stated,
        by=by.partition(".")[0],
        key=by.partition(".")[2],
        groupings=[
            each for each in GROUPINGS if each[0] != "owner" or names_owners or by == "owner"
        ],
        choices=_choices(read, (first, second)),
        first=first,
        second=second,
        ended=ENDED,
        roles=Role,
        names=NAMES,
        message=message,
        wrong=wrong,
        labels=LABELS,
        formatter=formatter,
        names_owners=names_owners,
        **({} if read is None else _shown(read, stated)),
    )
    return (text, 400) if message else text


def _names_owners(stated: dict[str, str]) -> bool:
    """Return whether jobs can be chosen by their owner: the caller may read those of all, and there are several."""
    caller = get_caller()
    return caller.readable_owner is None and (
        caller.key is not None
        or "owner" in stated
        or statistics.any_of_others(get_services().database, caller.owner)
    )


def _stated(given: dict[str, str]) -> dict[str, str]:
    """Return parameters without empty ones, and with the form's fields of one parameter joined."""
    stated = {name: value for name, value in given.items() if value.strip()}
    key, other = stated.pop("key", ""), stated.pop("with", "")
    if stated.get("by") == By.METADATA and key:
        stated["by"] = METADATA + key
    if other or ("compare" in stated and "with" in given):
        stated["compare"] = f"{stated.get('compare', '')},{other}"
    return stated


def _shown(read: Statistics, stated: dict[str, str]) -> dict[str, Any]:
    """Return what the template shows of statistics."""
    rows = _rows(read)
    left_out = ""
    if len(rows) > MAX_ROWS:
        left_out = f"The tables have the last {MAX_ROWS} of {len(rows)}; the charts have all."
    elif others := len(read.groups) + read.other_values - len(rows):
        left_out = f"And {others} more with fewer jobs."
    comparison = protocol.comparison(read)
    total = protocol.figures(read.total)
    return {
        "read": read,
        "before": _before(read, stated),
        "total": total,
        "lists": _lists(total, read, stated),
        "rows": rows[-MAX_ROWS:],
        "left_out": left_out,
        "whole_names": _names(read).whole(),
        "charts": _charts(read, rows),
        "comparison": comparison,
        "compared": [] if comparison is None else _compared(comparison),
        "compared_chart": None if comparison is None else _compared_chart(comparison),
    }


def _lists(total: dict[str, Any], read: Statistics, stated: dict[str, str]) -> list[Listed]:
    """Return the lists of the jobs that were counted. What has none is left out."""
    kept = {name: value for name, value in stated.items() if name in ("owner", "model", "adapter")}
    kept |= {"since": rfc3339(read.since), "until": rfc3339(read.until)}
    reviews = total["reviews"]
    found: list[tuple[str, int, dict[str, str]]] = [
        *((STATUSES[each], total["statuses"][each], {"status": each.value}) for each in ENDED),
        ("Regeneration rated -1", reviews["regeneration"]["-1"], {"rating": "-1"}),
        ("Critique rated -1", reviews["critique"]["-1"], {"critique_rating": "-1"}),
        ("Most changed", total["changed"]["count"], {"order": Order.MOST_CHANGED.value}),
        ("Longest", total["jobs"], {"order": Order.LONGEST.value}),
    ]
    return [
        Listed(
            name,
            count if "order" not in filters else None,
            url_for("pages.jobs", **kept, **filters),  # type: ignore[arg-type]  # names of parameters
        )
        for name, count, filters in found
        if count
    ]


def _before(read: Statistics, stated: dict[str, str]) -> tuple[str, str]:
    """Return the address that compares the range with the one before it, and how long that is, in words."""
    length = read.until - read.since
    ends = [
        f"{each:%Y-%m-%dT%H:%MZ}".removesuffix("T00:00Z")
        for each in (read.since - length, read.since, read.until)
    ]
    compare = f"{ends[0]}/{ends[1]},{ends[1]}/{ends[2]}"
    kept = {**stated, "since": ends[1], "until": ends[2], "compare": compare}
    unit, count = ("day", length.days)
    if length % dt.timedelta(days=1):
        unit, count = "hour", length // dt.timedelta(hours=1)
    words = f"the {unit} before" if count == 1 else f"the {count} {unit}s before"
    return url_for("pages.stats", **kept), words  # type: ignore[arg-type]  # names of parameters


def _over_time(query: Query) -> bool:
    return query.by in (By.HOUR, By.DAY)


def _rows(read: Statistics) -> list[Row]:
    shown = list(read.groups.items())
    if not _over_time(read.query):
        shown = shown[:MAX_GROUPS]
    names = _names(read)
    return [Row(_label(read, names, key), protocol.figures(tally)) for key, tally in shown]


def _names(read: Statistics) -> ModelNames:
    """Return the names of the models of the jobs that were read."""
    return ModelNames({model: read.models.get(model, {}) for model in read.by_model if model})


def _label(read: Statistics, names: ModelNames, key: Any) -> str:
    if isinstance(key, dt.datetime):
        return _period(read.query.by, key)
    if read.query.by is By.MODEL:
        return names.model(key)
    if read.query.by is By.ADAPTER:
        return "No adapter" if key is None else names.adapter(key)
    return "None" if key is None else plain(str(key))


def _period(by: By | None, start: dt.datetime) -> str:
    return start.strftime("%Y-%m-%d %H:00" if by is By.HOUR else "%Y-%m-%d")


def _choices(read: Statistics | None, chosen: tuple[str, str]) -> list[tuple[str, str]]:
    """Return what can be compared: a value and a name each."""
    choices: dict[str, str] = {}
    if read is not None:
        names = _names(read)
        for model in filter(None, read.by_model):
            choices[f"sha256:{model}"] = f"Model: {names.model(model)}"
        for key in names.adapters:
            choices.setdefault(key.digest or key.name, names.adapter(key))
    for value in filter(None, chosen):
        is_period = PERIOD.match(value)
        choices.setdefault(value, plain(value.replace("/", " to ") if is_period else value))
    return list(choices.items())


def _charts(read: Statistics, rows: list[Row]) -> list[tuple[str, Markup]]:
    """Return charts with their titles."""
    by = read.query.by
    figures: list[dict[str, Any] | None] = [row.figures for row in rows]
    labels = [row.label for row in rows]
    if _over_time(read.query):
        periods = list(starts(Level(str(by)), read.since, read.until))
        known = dict(zip(read.groups, figures, strict=True))
        labels = [_period(by, start) for start in periods]
        figures = [known.get(start) for start in periods]

    def series(kind: str, name: str, value: Callable[[dict[str, Any]], float | None]) -> Series:
        return Series(kind, name, [None if each is None else value(each) for each in figures])

    def by_role(measure: str, part: str) -> list[Series]:
        return [
            series(role, role.capitalize(), lambda f, r=role: f["stages"][r][measure][part])  # type: ignore[misc]  # a default
            for role in Role
        ]

    ends = [
        series(status, STATUSES[status], lambda f, s=status: f["statuses"][s])  # type: ignore[misc]  # a default
        for status in ENDED
    ]
    changed = [
        series("regenerator", "Mean words changed", lambda f: f["changed"]["mean"]),
        series("plain", "Rated +1, of rated", _better),
    ]
    measured = (
        ("time", "Median time of a stage", by_role("time", "p50"), seconds),
        ("first", "Median time to the first token", by_role("first_token", "p50"), seconds),
        ("rate", "Median tokens a second", by_role("rate", "p50"), number),
        ("changed", "What the regenerator changed", changed, percent),
    )
    if _over_time(read.query):
        return [
            ("Ended jobs", charts.columns("jobs", "Ended jobs", labels, ends)),
            *(
                (title, charts.lines(name, title, labels, values, written))
                for name, title, values, written in measured
            ),
        ]
    return [
        ("Ended jobs", charts.bars("jobs", "Ended jobs", labels, ends)),
        *(
            (title, charts.dots(name, title, labels, values, written))
            for name, title, values, written in measured
        ),
    ]


def _better(figures: dict[str, Any]) -> float | None:
    ratings = figures["reviews"]["regeneration"]
    rated = sum(ratings.values())
    return ratings["1"] / rated if rated else None


def _compared(comparison: dict[str, Any]) -> list[Compared]:
    found = []
    for measure in comparison["measures"]:
        if not measure["first"]["count"] and not measure["second"]["count"]:
            continue
        name, written = measure["measure"], formatter(measure["measure"])
        difference, verdict, text = measure["difference"], "", "–"
        if difference is not None:
            text = _with_interval(difference, signed(points if written is percent else written))
            verdict = _verdict(difference)
        first, second = (
            f"{_with_interval(measure[side], written)}, n\u00a0=\u00a0{measure[side]['count']}"
            for side in ("first", "second")
        )
        found.append(Compared(_measure_name(name), first, second, text, verdict))
    return found


def _verdict(difference: dict[str, float | None]) -> str:
    low, high = difference["low"], difference["high"]
    if low is None or high is None:
        return "too few jobs"
    if low > 0:
        return "the second is higher"
    return "the second is lower" if high < 0 else "no clear difference"


def _compared_chart(comparison: dict[str, Any]) -> Markup | None:
    rows = []
    for measure in comparison["measures"]:
        difference, first = measure["difference"], measure["first"]["value"]
        if difference is None or difference["low"] is None:
            continue
        name = _measure_name(measure["measure"])
        if measure["kind"] == "mean":
            if not first:
                continue
            per, label = first, f"{name}, % of the first"
        else:
            per, label = 1, f"{name}, percentage points"
        rows.append(Interval(label, *(difference[part] / per for part in ("value", "low", "high"))))
    if not rows:
        return None
    return charts.intervals(
        "differences", "By how much the second differs, with 95% intervals", rows, signed(percent)
    )


def _measure_name(measure: str) -> str:
    role, _, name = measure.rpartition(".")
    return f"{role.capitalize()}: {NAMES[name]}" if role else NAMES[name]


def _with_interval(estimate: dict[str, Any], written: Callable[[float], str]) -> str:
    if estimate["value"] is None:
        return "–"
    if estimate["low"] is None:
        return written(estimate["value"])
    return f"{written(estimate['value'])} [{written(estimate['low'])}, {written(estimate['high'])}]"
