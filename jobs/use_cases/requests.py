"""Requests with an idempotency key: noting what is done outside of the database, and deleting old ones.

What changes the database notes its request in the same transaction (`jobs.statements.requests`).
"""

from __future__ import annotations

from typing import Any

from jobs.database import Database
from jobs.statements import requests
from jobs.statements.requests import Keyed
from jobs.timing import SECONDS_PER_DAY
from jobs.transient import retry_on_conflict

__all__ = ["KEPT_DAYS", "Keyed", "delete_requests", "find_outcome", "note_outcome"]

#: How long a request can be repeated.
KEPT_DAYS = 7
#: The maximum number of requests that are deleted at once: nobody else can write to SQLite meanwhile.
MAX_DELETED = 1000


def find_outcome(database: Database, keyed: Keyed) -> dict[str, Any] | None:
    """Return the outcome of the same request before; None if there was none.

    Raises:
        IdempotencyError: the key was used for a different request.
    """
    with database.read() as connection:
        return requests.find(connection, keyed)


@retry_on_conflict
def note_outcome(database: Database, keyed: Keyed, **outcome: Any) -> None:
    """Note what came of a request.

    Raises:
        IdempotencyError: the key was used for a different request.
    """
    with database.write() as connection:
        requests.begin(connection, keyed)
        requests.end(connection, keyed, **outcome)


def delete_requests(database: Database) -> int:
    """Delete requests that are older than `KEPT_DAYS`, up to `MAX_DELETED`; return how many were deleted."""
    with database.write() as connection:
        return requests.delete_old(connection, KEPT_DAYS * SECONDS_PER_DAY, limit=MAX_DELETED)
