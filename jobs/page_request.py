"""A request for one page of a list in order of age. The API makes it, and the statements read it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from jobs.errors import CursorError, UserError


class PageRequest(NamedTuple):
    """Which page of a list to read."""

    #: The maximum number of entries.
    limit: int
    #: The id of the last entry of the page before; None for the first page.
    after: str | None = None
    newest_first: bool = True

    @contextmanager
    def check_after(self, missing: type[UserError]) -> Iterator[None]:
        """Look for the entry with the id ``after`` in the block.

        Args:
            missing: what is raised if there is no such entry.

        Raises:
            CursorError: there is none.
        """
        try:
            yield
        except missing:
            if self.after is None:
                raise
            raise CursorError(self.after) from None
