"""The query parameters that select jobs, in the list of jobs and in exports."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import NamedTuple

from flask import request

from jobs.enums import ANY, RATED, Order
from jobs.models import Status
from jobs.protocol.errors import InvalidRequestError, invalid_value
from jobs.search.filters import Filters
from jobs.search.query import Node, QueryError, parse
from jobs.use_cases import searching
from web import query
from web.services import get_services

METADATA = "metadata."
#: The query parameters of `exported` besides ``metadata.KEY``: which jobs.
FILTERS = (
    "adapter",
    "batch",
    "critique_rating",
    "key",
    "max_changed",
    "max_duration",
    "min_attempts",
    "min_changed",
    "min_duration",
    "model",
    "owner",
    "q",
    "rating",
    "reviewer",
    "since",
    "status",
    "tag",
    "until",
    "worker",
)
#: The query parameters of `list_request`, which also say which page.
PARAMETERS = tuple(sorted((*FILTERS, "after", "limit", "order")))
#: What `rating` and `critique_rating` may be: the last rating of the regeneration, and of the critique.
RATINGS = {"any": RATED, "none": None, "-1": -1, "0": 0, "1": 1, "+1": 1}
MAX_ATTEMPTS = 1000
MAX_DURATION = 10**9


class ListRequest(NamedTuple):
    """Which page of which list is requested."""

    filters: Filters
    owner: str | None
    limit: int
    after: str | None
    order: Order


def list_request(size: int = query.DEFAULT_PAGE_SIZE, others: Collection[str] = ()) -> ListRequest:
    """Return which page of which list of jobs is requested.

    Args:
        size: the default number of jobs of a page.
        others: the names of the parameters that the request may have besides.

    Raises:
        InvalidRequestError: a parameter is unknown, given twice or has a wrong value.
    """
    query.check_names("filter", sorted({*PARAMETERS, *others}), METADATA)
    filters = _filters()
    default = Order.NEWEST if filters.query is None else Order.RELEVANCE
    order = query.choice("order", default, tuple(Order))
    if order is Order.RELEVANCE and filters.query is None:
        raise invalid_value("order", "`order=relevance` needs a query: give `q`, or another order.")
    return ListRequest(
        filters,
        owner(),
        query.integer("limit", size, 1, query.MAX_PAGE_SIZE),
        query.given("after"),
        order,
    )


def _filters() -> Filters:
    text = (query.given("q") or "").strip()
    attempts = query.integer("min_attempts", 1, 1, MAX_ATTEMPTS)
    since, until = query.times()
    min_changed, max_changed = query.numbers("changed", 0, 1)
    min_duration, max_duration = query.numbers("duration", 0, MAX_DURATION)
    return Filters(
        statuses=query.choices("status", tuple(Status)),
        since=since,
        until=until,
        query=_parsed(text) if text else None,
        adapter=query.given("adapter"),
        key=query.given("key"),
        batch=query.given("batch"),
        model=model(),
        worker=query.given("worker"),
        metadata={
            name.removeprefix(METADATA): value
            for name, value in request.args.items()
            if name.startswith(METADATA)
        },
        rating=_rating("rating"),
        critique_rating=_rating("critique_rating"),
        reviewer=query.given("reviewer"),
        tag=query.given("tag"),
        min_attempts=attempts if query.given("min_attempts") else None,
        min_changed=min_changed,
        max_changed=max_changed,
        min_duration=min_duration,
        max_duration=max_duration,
    )


def find(page: ListRequest) -> searching.Page:
    """Return the requested page of jobs that the caller may read.

    Raises:
        CursorError: there is no such page.
    """
    services = get_services()
    return searching.search(
        services.database,
        services.readable_owner,
        page.filters,
        of=page.owner,
        limit=page.limit,
        after=page.after,
        order=page.order,
    )


def exported(others: Collection[str]) -> tuple[Filters, str | None]:
    """Return which jobs the current request exports, and of which owner.

    Args:
        others: the names of the parameters that it may have besides.

    Raises:
        InvalidRequestError: a parameter is unknown, given twice or has a wrong value.
    """
    query.check_names("parameter", sorted({*FILTERS, *others}), METADATA)
    return _filters(), owner()


def selected() -> list[str] | None:
    """Return the ids of the jobs that the current request names one by one; None if it has no parameter ``ids``.

    Raises:
        InvalidRequestError: there are none or too many, or filters besides.
    """
    if "ids" not in request.args:
        return None
    ids = list(dict.fromkeys(filter(None, request.args["ids"].split(","))))
    filtered = any(
        name.startswith(METADATA) or (name in FILTERS and query.given(name))
        for name in request.args
    )
    if not 0 < len(ids) <= query.MAX_PAGE_SIZE or filtered:
        raise invalid_value(
            "ids",
            f"`ids` must be 1 to {query.MAX_PAGE_SIZE} ids of jobs, separated by commas, without other filters.",
        )
    return ids


def _rating(name: str) -> int | None:
    if request.args.get(name) == " 1":
        return 1  # `+1` of a client that does not escape the plus sign.
    rating = query.choice(name, "", tuple(RATINGS))
    return RATINGS[rating] if rating else ANY


def _parsed(text: str) -> Node:
    try:
        return parse(text)
    except QueryError as error:
        raise InvalidRequestError(str(error), code="invalid_query", param="q") from None


def owner() -> str | None:
    """Return the owner whose jobs are meant."""
    text = query.given("owner")
    if text is not None and "\0" in text:
        raise invalid_value("owner", "`owner` must have no NUL character.")
    return text


def model() -> str | None:
    """Return the digest of a model as `jobs.models.Job.model` has it."""
    text = query.given("model")
    if text is None:
        return None
    match = re.fullmatch(r"(?:sha256:)?([0-9a-f]{64})", text.lower())
    if match is None:
        raise invalid_value(
            "model",
            "`model` must be a digest as histories have it: `sha256:` and 64 hexadecimal digits.",
        )
    return match[1]
