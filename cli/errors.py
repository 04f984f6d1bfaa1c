"""Errors that a person can mend: said in one sentence that says what to do."""

from __future__ import annotations

import sqlite3

import click

from jobs.errors import UserError


class ExpectedError(UserError):
    """A command cannot be carried out; the message is one sentence."""


def explain(error: Exception) -> str | None:
    """Say an error in a sentence, or return None where it is no error that a person can mend."""
    # Imported here because it takes a while, and most commands end without an error.
    import sqlalchemy as sa
    from redis import RedisError

    from jobs import transient

    if isinstance(error, UserError):
        return str(error)
    reason = transient.reason(error)
    if isinstance(error, sa.exc.SQLAlchemyError):
        return f"the database cannot be used ({reason}): {_advice(error)}"
    if isinstance(error, RedisError):
        return f"Redis cannot be reached ({reason}): start it, or check HELIXQ_REDIS_URL"
    return None


def _advice(error: Exception) -> str:
    """Say what may be done about a database that cannot be used."""
    original = getattr(error, "orig", None)
    if isinstance(original, sqlite3.Error):
        code = getattr(original, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_READONLY:
            return "the file and its folder must be writable"
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return "another program holds it: wait until it is done, or end it"
        return "check HELIXQ_DATA_DIR and HELIXQ_DATABASE_URL"
    return {
        "25006": "name the primary in HELIXQ_DATABASE_URL, or make the database writable",
        "42501": "grant the role the missing permission, or make it the database's owner",
        "3F000": "create the schema that the role's search_path names",
    }.get(str(getattr(original, "sqlstate", None)), "start it, or check HELIXQ_DATABASE_URL")


def fail(message: str) -> click.ClickException:
    """Make the error that ends a command: one sentence, exit status 1."""
    text = message.strip()
    return click.ClickException(text if text.endswith((".", "?", "`")) else f"{text}.")
