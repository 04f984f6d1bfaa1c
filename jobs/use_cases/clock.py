"""Reading the database's clock. A host's own may differ from it, and a page compares times of the database."""

from __future__ import annotations

import datetime as dt

from jobs.database import Database
from jobs.statements import clock


def now(database: Database) -> dt.datetime:
    """Return the database's time."""
    return database.query(clock.now)
