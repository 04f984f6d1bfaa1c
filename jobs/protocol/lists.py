"""The shape of lists in OpenAI's API."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def list_object(items: Iterable[dict[str, Any]], *, has_more: bool) -> dict[str, Any]:
    """Return one page of a list in OpenAI's shape.

    Args:
        items: of this page, in order, each with an ``id``.
        has_more: whether another page follows.
    """
    data = list(items)
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": has_more,
    }
