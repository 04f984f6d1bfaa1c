"""Which failures of the database pass without anybody's doing wrong: a caller waits, or asks again."""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

#: What PostgreSQL counts among a program's own mistakes, and an operator can bring about and mend: rights,
#: tables, columns, schemas and databases that are missing; prepared statements that a pooler has lost.
_MENDED_ELSEWHERE = {"42501", "42P01", "42703", "3F000", "3D000", "26000", "42P05"}
#: A transaction that PostgreSQL asks to repeat: it could not be serialized, or was one of a deadlock.
_REPEAT = {"40001", "40P01"}
#: How often a transaction is run, and seconds before it is run again, growing with each time.
_TRIES, _PAUSE = 5, 0.05

P = ParamSpec("P")
T = TypeVar("T")


def passes(error: BaseException) -> bool:
    """Whether a database failed that could do the same at another time.

    It is away, full, locked, read-only or in somebody's hands. What a statement or a value of ours is to
    blame for does not pass.
    """
    if isinstance(error, PoolTimeoutError):
        return True
    if isinstance(error, ProgrammingError):
        return _sqlstate(error) in _MENDED_ELSEWHERE
    return isinstance(error, DBAPIError) and not isinstance(error, DataError | IntegrityError)


def reason(error: BaseException) -> str:
    """Return what a server or its driver said, in one line."""
    lines = str(getattr(error, "orig", None) or error).strip().splitlines()
    return lines[0].rstrip(".:") if lines else type(error).__name__


def repeated(transaction: Callable[P, T]) -> Callable[P, T]:
    """Run a transaction again where the database asks for it: nothing of it was kept."""

    @functools.wraps(transaction)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        for number in range(1, _TRIES):
            try:
                return transaction(*args, **kwargs)
            except DBAPIError as error:
                if _sqlstate(error) not in _REPEAT:
                    raise
            time.sleep(_PAUSE * number * random.uniform(0.5, 1.5))  # so that two do not meet again
        return transaction(*args, **kwargs)

    return run


def _sqlstate(error: DBAPIError) -> str | None:
    return getattr(error.orig, "sqlstate", None)
