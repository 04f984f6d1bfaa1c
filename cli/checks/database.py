"""The database."""

from __future__ import annotations

import datetime as dt

import sqlalchemy as sa

from cli.checks.findings import Findings, ok, warning
from cli.database import open_database
from jobs import advice
from jobs.database_clock import utcnow
from jobs.settings import Settings

#: Seconds that this machine's clock and the database's may differ.
MAX_SKEW = 5.0


def check(settings: Settings) -> Findings:
    """Whether the database responds, has the schema and the encoding, can be written, and agrees on the time."""
    with open_database(settings) as db:
        db.check_writable()
        yield ok(f"{db.engine.dialect.name} responds, and its schema is up to date")
        before = dt.datetime.now(dt.UTC)
        now = db.query(lambda connection: connection.scalar(sa.select(utcnow())))
        after = dt.datetime.now(dt.UTC)
        if now is not None:
            skew = max((before - now).total_seconds(), (now - after).total_seconds(), 0.0)
            if skew > MAX_SKEW:
                yield warning(
                    f"the clocks of this machine and of the database differ by {skew:.0f} s: synchronise them (NTP)"
                )
        for sentence in advice.about_database(db, processes=1):
            yield warning(sentence)
