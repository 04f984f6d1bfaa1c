"""The body of a request as JSON: parsing it, and the digest that idempotency compares."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any, NoReturn

from jobs.protocol.errors import InvalidRequestError
from jobs.tlog.canonical import MAX_INTEGER

#: The maximum number of arrays and objects within each other.
MAX_DEPTH = 100


class NotFiniteError(ValueError):
    """A number that JSON cannot represent, so that replies could not repeat it."""


class RepeatedNameError(ValueError):
    """An object has a name twice. Of the values, some programs take the first and some the last."""


def loads(text: bytes, *, unique_names: bool = False) -> Any:
    """Parse what a client sent as JSON.

    Python's parser takes ``NaN`` and ``Infinity``, which are no JSON, and reads ``1e400`` as infinity. It also
    distinguishes 100.0 from 100, as JSON does not: encoders of several languages write all numbers with a
    fraction. Here a number without one is an int, however it is written, up to ±`MAX_INTEGER`.

    Args:
        text: to parse.
        unique_names: whether the text is refused if an object has a name twice. Otherwise the last value counts.

    Raises:
        NotFiniteError: there is such a number.
        RepeatedNameError: there is such an object.
        ValueError, RecursionError: it is not JSON, or not in Unicode, or too deep, or has a number with too many digits.
    """
    pairs_hook = _unique if unique_names else None
    return json.loads(
        text, parse_constant=_not_finite, parse_float=_number, object_pairs_hook=pairs_hook
    )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        raise RepeatedNameError(
            f"an object has the name {twice[:40]!r} twice, so that programs may read different values"
        )
    return found


def _not_finite(text: str) -> NoReturn:
    raise NotFiniteError(f"{text[:20]} is not a number in JSON")


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        _not_finite(text)
    return int(number) if number.is_integer() and abs(number) <= MAX_INTEGER else number


def parse(body: bytes) -> dict[str, Any]:
    """Parse a body; `jobs.protocol.validation.validate` checks its parameters.

    Raises:
        InvalidRequestError: the body is not a JSON object.
    """
    if not body.strip():
        raise InvalidRequestError(
            "The body is empty. It must be a JSON object.", code="invalid_json"
        )
    try:
        data = loads(body)
    except (json.JSONDecodeError, UnicodeDecodeError, NotFiniteError) as error:
        raise InvalidRequestError(
            f"The body is not valid JSON: {error}.", code="invalid_json"
        ) from error
    except (ValueError, RecursionError) as error:
        raise _too_complex() from error
    if not isinstance(data, dict):
        raise InvalidRequestError("The body must be a JSON object.", code="invalid_type")
    check_depth(data)
    return data


def digest(data: dict[str, Any]) -> str:
    """Return the SHA-256 of the parameters that a request sets, as they were sent.

    Defaults are left out: a request that is sent again is the same request even if the server was
    upgraded in between.

    Args:
        data: a parsed body.
    """
    parameters = {name: value for name, value in data.items() if value is not None}
    return hashlib.sha256(json.dumps(parameters, sort_keys=True).encode()).hexdigest()


def check_depth(data: dict[str, Any]) -> None:
    """Check that recursive code can read a body. The interpreter's own limit depends on the depth of the caller.

    Raises:
        InvalidRequestError: it has more than `MAX_DEPTH` arrays and objects within each other.
    """
    level: list[Any] = [data]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for each in level
            for child in (each.values() if isinstance(each, dict) else each)
            if isinstance(child, dict | list)
        ]
        if not level:
            return
    raise _too_complex()


def _too_complex() -> InvalidRequestError:
    return InvalidRequestError(
        f"The body cannot be parsed: it has more than {MAX_DEPTH} arrays and objects within each other, "
        "or a number with too many digits.",
        code="invalid_json",
    )
