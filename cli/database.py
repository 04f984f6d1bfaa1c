"""The database, for the commands that use it themselves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import migrations
from jobs.database import Database
from jobs.settings import Settings


@contextmanager
def open_database(settings: Settings) -> Iterator[Database]:
    """Open the database of the settings, and close it at the end of the block.

    Raises:
        migrations.SchemaError: its schema is not at the latest revision.
    """
    database = Database(settings.database)
    try:
        migrations.check(database.engine)
        yield database
    finally:
        database.close()
