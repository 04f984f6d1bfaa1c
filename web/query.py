"""Query parameters of the endpoints of ``/v1`` and ``/api``.

An empty one is the same as none. Each function raises `InvalidRequestError`, which names the parameter, if
its value is wrong.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Collection
from typing import TypeVar

from flask import request

from jobs.page_request import PageRequest
from jobs.protocol.errors import InvalidRequestError, invalid_value

DEFAULT_PAGE_SIZE = 20
MAX_PAGE_SIZE = 100
#: What OpenAI's clients send besides, and what makes no difference here: all that could be included is.
NEUTRAL = ("api-version", "beta", "include", "include[]", "include_obfuscation")

T = TypeVar("T", bound=str)
D = TypeVar("D")


def given(name: str) -> str | None:
    """Return a query parameter; None if it is not there, or empty: forms send fields that were left empty."""
    return request.args.get(name) or None


def page(
    *others: str,
    default: int = DEFAULT_PAGE_SIZE,
    maximum: int = MAX_PAGE_SIZE,
    order: str = "desc",
) -> PageRequest:
    """Return which page of a list of ``/v1`` is requested.

    Args:
        others: the names of the parameters that the list has besides.
        default, maximum: of the number of entries.
        order: if the request does not say.
    """
    check_names("parameter", sorted(("limit", "after", "order", *others)), ignored=NEUTRAL)
    limit = integer("limit", default, 1, maximum)
    newest_first = choice("order", order, ("asc", "desc")) == "desc"
    return PageRequest(limit, given("after"), newest_first)


def time(name: str) -> dt.datetime | None:
    """Return a query parameter that is a time: Unix seconds, or RFC 3339."""
    text = given(name)
    return None if text is None else parse_time(name, text)


def parse_time(name: str, text: str) -> dt.datetime:
    """Return a time of the query parameter ``name``: Unix seconds, or RFC 3339."""
    try:
        if re.fullmatch(r"\d{1,11}(\.\d{1,9})?", text):
            return dt.datetime.fromtimestamp(float(text), dt.UTC)
        # The plus sign of an offset arrives as a space where a client does not escape it.
        text = re.sub(r"([T ]\S+) (\d\d:\d\d)$", r"\1+\2", text.upper())
        moment = dt.datetime.fromisoformat(text)
        return moment.astimezone(dt.UTC) if moment.tzinfo else moment.replace(tzinfo=dt.UTC)
    except (ValueError, OverflowError):
        raise invalid_value(
            name, f"`{name}` must be a time: 2026-01-31, 2026-01-31T12:00:00Z, or Unix seconds."
        ) from None


def times() -> tuple[dt.datetime | None, dt.datetime | None]:
    """Return the query parameters ``since`` and ``until``: a range without its end, which is not empty."""
    since, until = time("since"), time("until")
    if since is not None and until is not None and since >= until:
        raise invalid_value(
            "since",
            "`since` must be earlier than `until`. For one whole day, give the next day as `until`.",
        )
    return since, until


def integer(name: str, default: int, minimum: int, maximum: int) -> int:
    """Return a query parameter that is an integer."""
    text = given(name)
    if text is None:
        return default
    if not re.fullmatch(r"-?\d{1,10}", text) or not minimum <= int(text) <= maximum:
        raise invalid_value(name, f"`{name}` must be an integer from {minimum} to {maximum}.")
    return int(text)


def text(name: str, default: str, maximum: int) -> str:
    """Return a query parameter that is a text of up to ``maximum`` characters."""
    value = given(name) or default
    if len(value) > maximum:
        raise invalid_value(name, f"`{name}` must have at most {maximum} characters.")
    return value


def number(name: str, minimum: float, maximum: float) -> float | None:
    """Return a query parameter that is a number, such as ``0.5``."""
    text = given(name)
    if text is None:
        return None
    if not re.fullmatch(r"\d{1,12}(\.\d{1,12})?", text) or not minimum <= float(text) <= maximum:
        raise invalid_value(
            name, f"`{name}` must be a number from {minimum:g} to {maximum:.15g}, such as 0.5."
        )
    return float(text)


def numbers(name: str, minimum: float, maximum: float) -> tuple[float | None, float | None]:
    """Return the query parameters ``min_NAME`` and ``max_NAME``, of which the first is not the greater one."""
    least, most = (number(f"{end}_{name}", minimum, maximum) for end in ("min", "max"))
    if least is not None and most is not None and least > most:
        raise invalid_value(f"min_{name}", f"`min_{name}` must not be greater than `max_{name}`.")
    return least, most


def choices(name: str, allowed: tuple[T, ...]) -> tuple[T, ...]:
    """Return a query parameter that is some of several values, separated by commas."""
    values = set(filter(None, request.args.get(name, "").split(",")))
    if not values <= set(allowed):
        raise invalid_value(
            name,
            f"`{name}` must be one or several of these, separated by commas: {', '.join(allowed)}.",
        )
    return tuple(value for value in allowed if value in values)


def choice(name: str, default: D, choices: tuple[T, ...]) -> T | D:
    """Return a query parameter that is one of some values, such as the members of an enum; ``default`` if it is none."""
    text = given(name)
    if text is None:
        return default
    if text not in choices:
        raise invalid_value(name, f"`{name}` must be one of: {', '.join(choices)}.")
    return choices[choices.index(text)]


def flag(name: str) -> bool:
    """Return a query parameter that is ``true`` or ``false``, the default."""
    return choice(name, "false", ("true", "false")) == "true"


def check_names(
    kind: str, known: Collection[str], prefix: str | None = None, ignored: Collection[str] = ()
) -> None:
    """Check that the request has only parameters that there are, each once.

    Args:
        kind: what the parameters are called.
        known: their names.
        prefix: of names that end with a key of the client's; None for no such names.
        ignored: names of others that it may have, any number of times.

    Raises:
        InvalidRequestError: a parameter is unknown, or given twice.
    """
    for name, values in request.args.lists():
        if name in ignored:
            continue
        # The key may be empty, as those of metadata may.
        has_key = prefix is not None and name.startswith(prefix)
        if name not in known and not has_key:
            keyed = "" if prefix is None else f" and {prefix}KEY"
            raise InvalidRequestError(
                f"There is no {kind} `{name}`; there are {', '.join(known)}{keyed}.",
                code="unknown_parameter",
                param=name,
            )
        if len(values) > 1:
            raise invalid_value(name, f"`{name}` must be given once.")
