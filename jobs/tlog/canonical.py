"""Canonical JSON (RFC 8785), in which records and entries are hashed, with a spelling for what it does not cover."""

from __future__ import annotations

import json
import math
from typing import Any

import rfc8785

#: The largest integer that every JSON parser reads exactly. Larger ones are recorded as their digits.
MAX_INTEGER = 2**53 - 1
#: Between them, Python and JavaScript spell numbers that are not whole alike.
MIN_PLAIN, MAX_PLAIN = 1e-4, 1e15
#: Far less than Python's limit of recursion.
MAX_DEPTH = 200


def canonical(value: Any) -> bytes:
    """Return a JSON value as RFC 8785 spells it.

    Some values that clients can send are beyond RFC 8785, and become texts: integers beyond ±(2^53 - 1) those of
    their digits, what Python's parser reads as NaN and Infinity those words, and a value that is nested more
    than `MAX_DEPTH` deep its JSON.
    """
    if isinstance(value, str):  # The standard library spells texts the same, and much faster.
        return json.dumps(value, ensure_ascii=False).encode()
    if _depth(value) > MAX_DEPTH:
        return canonical(json.dumps(value, sort_keys=True))
    odd: list[Any] = []
    exact = _exact(value, odd)
    if odd:
        return rfc8785.dumps(exact)
    # Of all else, the standard library has the same spelling, in a fifth of the time.
    return json.dumps(exact, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()


def _depth(value: Any) -> int:
    """Return how deep a value is nested. It is no recursion, so that no value is too deep for it."""
    depth, level = 0, [value]
    while level:
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                inner.extend(item.values())
            elif isinstance(item, list):
                inner.extend(item)
        depth, level = depth + 1, inner
    return depth


def _exact(value: Any, odd: list[Any]) -> Any:
    """Return a value that RFC 8785 can spell; add to ``odd`` what Python's encoder spells otherwise."""
    if isinstance(value, dict):
        odd += [key for key in value if not key.isascii()]  # They may be sorted otherwise.
        return {key: _exact(item, odd) for key, item in value.items()}
    if isinstance(value, list):
        return [_exact(item, odd) for item in value]
    if isinstance(value, float):
        if not math.isfinite(value):
            return str(value)
        if value.is_integer() and abs(value) <= MAX_INTEGER:
            return int(value)
        if not MIN_PLAIN <= abs(value) < MAX_PLAIN:
            odd.append(value)
    elif isinstance(value, int) and abs(value) > MAX_INTEGER:
        return str(value)
    return value
