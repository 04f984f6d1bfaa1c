"""The query parameters that say which jobs are meant: those of the list of jobs and of exports."""

from __future__ import annotations

from collections.abc import Collection

from flask import request

from jobs.models import Status
from jobs.protocol.errors import InvalidRequestError
from jobs.use_cases.exporting import Filters
from jobs.use_cases.queries import ANY
from web import query

#: The parameters of `read`.
FILTERS = frozenset({"status", "owner", "since", "until", "rating"})
#: What `rating` may be: the last rating of the regeneration.
RATINGS = {"": ANY, "none": None, "-1": -1, "0": 0, "1": 1}


def read(others: Collection[str]) -> Filters:
    """Return which jobs the current request means.

    Args:
        others: the names of the parameters that it may have besides.

    Raises:
        InvalidRequestError: a parameter is wrong or unknown.
    """
    known = FILTERS.union(others)
    if unknown := sorted(request.args.keys() - known):
        raise InvalidRequestError(
            f"There is no parameter `{unknown[0]}`; there are {', '.join(sorted(known))}.",
            code="unknown_parameter",
            param=unknown[0],
        )
    status = query.choice("status", "", ("", *Status))
    return Filters(
        owner=request.args.get("owner"),
        status=Status(status) if status else None,
        since=query.time("since"),
        until=query.time("until"),
        rating=RATINGS[query.choice("rating", "", tuple(RATINGS))],
    )
