"""Errors that a person can mend: said in one sentence that says what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa
from redis import RedisError

from migrations import SchemaError


class ExpectedError(Exception):
    """A command cannot be carried out; the message is one sentence."""


@contextmanager
def expected() -> Iterator[None]:
    """Turn the errors that the servers and the schema can give into an `ExpectedError`."""
    try:
        yield
    except SchemaError as error:
        raise ExpectedError(str(error)) from error
    except sa.exc.SQLAlchemyError as error:
        reason = first_line(getattr(error, "orig", None) or error)
        raise ExpectedError(
            f"the database cannot be used ({reason}): start it, or check HELIXQ_DATABASE_URL"
        ) from error
    except RedisError as error:
        raise ExpectedError(
            f"Redis cannot be reached ({first_line(error)}): start it, or check HELIXQ_REDIS_URL"
        ) from error


def first_line(error: BaseException) -> str:
    """Return what an error says, without the lines that explain it at length."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".:") if lines else type(error).__name__
