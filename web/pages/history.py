"""The list of jobs: its search, its filters and its pages, all of them in the address."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any
from urllib.parse import urlencode

from flask import redirect, render_template, request, url_for
from werkzeug.wrappers import Response

from jobs.enums import Order
from jobs.errors import CursorError
from jobs.models import Scope, Status
from jobs.protocol.errors import InvalidRequestError, invalid_value, translate
from jobs.use_cases import overview
from jobs.use_cases.owners import narrow
from jobs.use_cases.searching import Page
from web.caller import get_caller
from web.job_filters import FILTERS, METADATA, PARAMETERS, ListRequest, find, list_request
from web.pages import job_rows
from web.pages.complaints import message_of
from web.services import get_services

PAGE_SIZE = 25
RATINGS = (
    ("", "Any or none"),
    ("any", "Rated"),
    ("-1", "-1"),
    ("0", "0"),
    ("1", "+1"),
    ("none", "Not rated"),
)
#: The orders, by their values, and what a list in one begins with.
ORDERS = {
    Order.RELEVANCE: "Best matches",
    Order.NEWEST: "Newest",
    Order.OLDEST: "Oldest",
    Order.MOST_CHANGED: "Most changed",
    Order.LONGEST: "Longest",
}
#: The numbers of days that the list can be narrowed to with one click.
PERIODS = (1, 7, 30)
#: What is behind "More filters".
_MORE = (
    "order",
    "owner",
    "key",
    "batch",
    "rating",
    "critique_rating",
    "reviewer",
    "tag",
    "adapter",
    "model",
    "worker",
    "since",
    "until",
    "min_attempts",
    "min_duration",
    "max_duration",
    "min_changed",
    "max_changed",
)
#: The labels of the filters, by their parameters.
LABELS = {
    "q": "Search",
    "rating": "Rating of the regeneration",
    "critique_rating": "Rating of the critique",
    "reviewer": "Reviewed by",
    "tag": "Tag of a review",
    "owner": "Owner",
    "key": "API key",
    "batch": "Batch",
    "adapter": "Adapter",
    "model": "Model",
    "worker": "Worker",
    "since": "Created since (UTC)",
    "until": "Created before (UTC)",
    "metadata": "Metadata",
    "min_attempts": "Attempts at a stage, at least",
    "min_duration": "Duration in seconds, at least",
    "max_duration": "Duration in seconds, at most",
    "min_changed": "Share of words changed, at least",
    "max_changed": "Share of words changed, at most",
}
_HISTORIES: Mapping[str, str] = MappingProxyType({})
#: Other files of all jobs of the list, with the parameters of the export.
EXPORTS = (
    ("CSV", {"format": "csv"}),
    ("preference pairs", {"shape": "preference"}),
    ("fine-tuning", {"shape": "sft"}),
    ("reviews as CSV", {"shape": "review", "format": "csv"}),
)
#: What says which page of the list it is, and not which list.
_PLACE = ("after", "before", "select")
#: The columns that a list is ordered by, with the orders that their headings lead to, the first one first.
_ORDERED = {
    "Took": (Order.LONGEST,),
    "Changed": (Order.MOST_CHANGED,),
    "Created": (Order.NEWEST, Order.OLDEST),
}
_REVERSED = {Order.NEWEST: Order.OLDEST, Order.OLDEST: Order.NEWEST}


def url(parameters: Mapping[str, str]) -> str:
    """Return the address of a list."""
    query = urlencode(parameters)
    return f"{url_for('pages.jobs')}?{query}" if query else url_for("pages.jobs")


@dataclass(frozen=True)
class _Links:
    """Where the page's neighbours are; None where there is none."""

    first: str | None = None
    #: The page before, of a list by age.
    back: str | None = None
    onward: str | None = None


@dataclass(frozen=True)
class _Chip:
    """A status, or a range of days, to filter by."""

    name: str
    #: None where it is not known.
    count: str | None
    url: str
    current: bool


@dataclass(frozen=True)
class _Pair:
    """A pair of metadata that the list is filtered by, and the list without it."""

    name: str
    is_empty: bool
    url: str


@dataclass(frozen=True)
class _Heading:
    """The heading of a column that a list can be ordered by."""

    name: str
    url: str
    #: Of `aria-sort`; None if the list has another order.
    sort: str | None


def show() -> Response | str | tuple[str, int]:
    """List jobs, the newest first, or the best matches of a search."""
    given = request.args.to_dict()
    stated = _stated(given)
    if stated != given:  # A form sends what was left empty, and a pair of metadata as one field.
        return redirect(url(stated), code=303)
    asked = {name: value for name, value in stated.items() if name not in _PLACE}
    chosen, message, wrong = None, None, None
    found, links = Page([], None), _Links()
    try:
        if "metadata" in stated:
            raise invalid_value(
                "metadata", "`metadata` must be a key and a value, such as project=apollo."
            )
        chosen = list_request(PAGE_SIZE, others=_PLACE)
        found, links = _page(chosen, stated)
    except (InvalidRequestError, CursorError) as error:
        told = translate(error)
        message, wrong = message_of(told, LABELS), told.param
    if (
        "before" in stated
        and not message
        and links.back is None
        and len(found.jobs) < _size(chosen)
    ):
        # Fewer jobs are newer than a page has: the newest page has all of them.
        return redirect(url(asked), code=303)
    rows = job_rows.rows(get_services().database, found.jobs, chosen and chosen.filters.query)
    metadata = _metadata(asked)
    periods = _periods(asked)
    # What the links above the list show needs no field.
    behind = set(_MORE) - ({"since"} if any(chip.current for chip in periods) else set())
    text = render_template(
        "jobs.html",
        rows=rows,
        models=job_rows.models(rows),
        given=stated,
        asked={name: value for name, value in asked.items() if name != "limit"},
        chips=_chips(chosen, asked),
        periods=periods,
        ratings=RATINGS,
        metadata=metadata,
        hidden=_hidden(asked),
        by_owner=_names_owners(stated, rows),
        by_key=get_caller().key is not None or "key" in stated,
        more_filters=bool(metadata) or "metadata" in stated or not behind.isdisjoint(stated),
        filtered=asked.keys() - {"limit", "order"} or not (chosen is None or chosen.order.by_age),
        order=chosen and chosen.order,
        ranking=chosen and ORDERS[chosen.order],
        orders=_orders(chosen),
        headings=_headings(chosen, asked),
        paged="after" in stated or "before" in stated,
        links=links,
        by_age=url({**asked, "order": "desc"}),
        all_selected="select" in stated,
        select_all=url({**stated, "select": "page"}),
        export_all=_export(asked),
        exports=[(name, _export(asked, shape)) for name, shape in EXPORTS],
        back=urlencode({name: value for name, value in stated.items() if name != "select"}),
        news=_news(chosen, stated, found),
        may_ask=get_caller().may(Scope.ASK),
        message=message,
        wrong=wrong,
        labels=LABELS,
    )
    return (text, 400) if message else text


def _stated(given: Mapping[str, str]) -> dict[str, str]:
    """Return parameters without empty ones, and with the form's pair of metadata under its key.

    A value of metadata may be empty: jobs are found by it.
    """
    stated = {n: value for n, value in given.items() if value.strip() or n.startswith(METADATA)}
    key, separator, value = stated.get("metadata", "").partition("=")
    if separator:
        del stated["metadata"]
        stated[METADATA + key.strip()] = value.strip()
    return stated


def _metadata(asked: Mapping[str, str]) -> list[_Pair]:
    """Return the pairs of metadata that the list is filtered by."""
    return [
        _Pair(
            f"{name.removeprefix(METADATA)} = {value}",
            not value,
            url({n: each for n, each in asked.items() if n != name}),
        )
        for name, value in asked.items()
        if name.startswith(METADATA)
    ]


def _names_owners(stated: Mapping[str, str], rows: list[job_rows.Row]) -> bool:
    """Return whether the form asks for an owner: the caller may read the jobs of all, and there are several."""
    caller = get_caller()
    others = "owner" in stated and caller.readable_owner is None
    return others or caller.names_owners(row.job.owner for row in rows)


def news() -> dict[str, Any]:
    """Reply with the number of jobs of a list that were created after one of them.

    Raises:
        CursorError: there is no such job.
        InvalidRequestError: a filter is wrong, or of the search index.
    """
    chosen = list_request(PAGE_SIZE)
    if chosen.after is None or not overview.can_count(chosen.filters):
        raise invalid_value(
            "after", "New jobs are counted after a job, by `status`, `owner`, `since` and `until`."
        )
    any_meant, owner = narrow(get_services().readable_owner, chosen.owner)
    count = 0
    if any_meant:
        database = get_services().database
        count = overview.count_newer(database, owner, chosen.filters, chosen.after)
    return {"count": count, "more": count == overview.MAX_NEW}


def _size(chosen: ListRequest | None) -> int:
    return PAGE_SIZE if chosen is None else chosen.limit


def _page(chosen: ListRequest, stated: dict[str, str]) -> tuple[Page, _Links]:
    """Return a page and its neighbours. A page after or before a job stays the same while jobs arrive."""
    backwards = "before" in stated
    asked = {name: value for name, value in stated.items() if name not in _PLACE}
    by_age = chosen.order.by_age
    if backwards and (not by_age or "after" in stated):
        raise invalid_value(
            "before",
            "`before` needs an order by age, `desc` or `asc`, and cannot be combined with `after`.",
        )

    def link(name: str, cursor: str | None) -> str | None:
        return cursor and url({**asked, name: cursor})

    if not backwards:
        found = find(chosen)
        first = found.jobs[0].job.id if found.jobs and "after" in stated and by_age else None
        onward = link("after", found.next)
        return found, _Links(
            url(asked) if "after" in stated else None, link("before", first), onward
        )
    page = find(chosen._replace(after=stated["before"], order=_REVERSED[chosen.order]))
    found = Page(page.jobs[::-1], page.next)
    last = found.jobs[-1].job.id if found.jobs else None
    return found, _Links(url(asked), link("before", page.next), link("after", last))


def _chips(chosen: ListRequest | None, asked: dict[str, str]) -> list[_Chip]:
    """Return the statuses to filter by, with their counts where an index has them."""
    counts: dict[Status, int] | None = None
    if chosen is not None and chosen.order.by_age and overview.can_count(chosen.filters):
        any_meant, owner = narrow(get_services().readable_owner, chosen.owner)
        since, until = chosen.filters.since, chosen.filters.until
        counts = dict.fromkeys(Status, 0)
        if any_meant:
            database = get_services().database
            counts = overview.count_by_status(database, owner, since=since, until=until)
    total = None if counts is None else sum(counts.values())
    bounded = counts is not None and overview.MAX_COUNT in counts.values()
    others = {name: value for name, value in asked.items() if name != "status"}
    current = asked.get("status", "").split(",")
    chips = [_Chip("All", _number(total, bounded), url(others), "status" not in asked)]
    for status in Status:
        count = None if counts is None else counts[status]
        chips.append(
            _Chip(
                job_rows.STATUSES[status],
                _number(count, count == overview.MAX_COUNT),
                url({**others, "status": status.value}),
                status.value in current,
            )
        )
    return chips


def _periods(asked: dict[str, str]) -> list[_Chip]:
    """Return the ranges of days to filter by, up to today in UTC."""
    others = {name: value for name, value in asked.items() if name not in ("since", "until")}
    chips = [_Chip("Any day", None, url(others), asked.keys().isdisjoint(("since", "until")))]
    today = dt.datetime.now(dt.UTC).date()
    for days in PERIODS:
        since = f"{today - dt.timedelta(days=days - 1)}"
        name = "Today" if days == 1 else f"{days} days"
        is_current = "until" not in asked and asked.get("since") == since
        chips.append(_Chip(name, None, url({**others, "since": since}), is_current))
    return chips


def _number(count: int | None, bounded: bool) -> str | None:
    if count is None:
        return None
    return f"{overview.MAX_COUNT:,}+" if bounded else f"{count:,}"


def _hidden(asked: dict[str, str]) -> dict[str, str]:
    """Return what the form keeps of the address and does not show."""
    kept = set(PARAMETERS) - {"q", *_MORE}
    return {n: value for n, value in asked.items() if n in kept or n.startswith(METADATA)}


def _orders(chosen: ListRequest | None) -> list[tuple[str, str]]:
    """Return the orders that a user can choose, the default first: it need not be in the address."""
    searched = chosen is not None and chosen.filters.query is not None
    default = Order.RELEVANCE if searched else Order.NEWEST
    others = [each for each in ORDERS if each is not default and each is not Order.RELEVANCE]
    return [("", ORDERS[default]), *((each.value, ORDERS[each]) for each in others)]


def _headings(chosen: ListRequest | None, asked: dict[str, str]) -> dict[str, _Heading]:
    """Return the headings of the columns that a list can be ordered by, each with a link to that order."""
    current = None if chosen is None else chosen.order
    headings = {}
    for name, orders in _ORDERED.items():
        following = next((each for each in orders if each is not current), orders[0])
        sort = "ascending" if current is Order.OLDEST else "descending"
        headings[name] = _Heading(
            name, url({**asked, "order": following.value}), sort if current in orders else None
        )
    return headings


def _export(asked: dict[str, str], shape: Mapping[str, str] = _HISTORIES) -> str:
    """Return where all jobs of the list are exported, whichever page it is."""
    filters = {n: value for n, value in asked.items() if n in FILTERS or n.startswith(METADATA)}
    filters |= shape
    query = urlencode(filters)
    return f"{url_for('api.export_jobs')}?{query}" if query else url_for("api.export_jobs")


def _news(chosen: ListRequest | None, stated: dict[str, str], found: Page) -> str | None:
    """Return where the script asks for new jobs; None where they would not be on this page."""
    if (
        chosen is None
        or not found.jobs
        or chosen.order is not Order.NEWEST
        or "after" in stated
        or "before" in stated
        or not overview.can_count(chosen.filters)
    ):
        return None
    names = ("status", "owner", "since", "until")
    filters = {name: stated[name] for name in names if name in stated}
    return f"{url_for('pages.jobs_news')}?{urlencode({**filters, 'after': found.jobs[0].job.id})}"
