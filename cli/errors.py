"""Errors that a person can mend: said in one sentence that says what to do."""

from __future__ import annotations

import click


class ExpectedError(Exception):
    """A command cannot be carried out; the message is one sentence."""


def explain(error: Exception) -> str | None:
    """Say an error in a sentence, or return None where it is no error that a person can mend."""
    # Imported here because it takes a while, and most commands end without an error.
    import sqlalchemy as sa
    from redis import RedisError

    from migrations import SchemaError
    from worker.lora import LoraError

    if isinstance(error, ExpectedError | SchemaError | LoraError):
        return str(error)
    if isinstance(error, sa.exc.SQLAlchemyError):
        reason = first_line(getattr(error, "orig", None) or error)
        return f"the database cannot be used ({reason}): start it, or check HELIXQ_DATABASE_URL"
    if isinstance(error, RedisError):
        return f"Redis cannot be reached ({first_line(error)}): start it, or check HELIXQ_REDIS_URL"
    return None


def fail(message: str) -> click.ClickException:
    """Make the error that ends a command: one sentence, exit status 1."""
    text = message.strip()
    return click.ClickException(text if text.endswith((".", "?", "`")) else f"{text}.")


def first_line(error: BaseException) -> str:
    """Return what an error says, without the lines that explain it at length."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".:") if lines else type(error).__name__
