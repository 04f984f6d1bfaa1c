"""A request for one page of a list in order of age. The API makes it, and the statements read it."""

from __future__ import annotations

from typing import NamedTuple


class PageRequest(NamedTuple):
    """Which page of a list to read."""

    #: The maximum number of entries.
    limit: int
    #: The id of the last entry of the page before; None for the first page.
    after: str | None = None
    newest_first: bool = True
