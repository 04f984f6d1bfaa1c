"""Which page of a list by age is asked for, from the query parameters of the API down to the statements."""

from __future__ import annotations

from typing import NamedTuple


class PageRequest(NamedTuple):
    """A page of a list by age."""

    #: The maximum number of entries.
    limit: int
    #: The id of the last entry of the page before; None for the first page.
    after: str | None = None
    newest_first: bool = True
