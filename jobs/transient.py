"""Which database errors are transient, and running a transaction again."""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

#: SQLSTATEs that PostgreSQL classifies as a program's mistakes, and that an operator can cause and fix:
#: missing privileges, tables, columns, schemas and databases; prepared statements that a pooler lost.
_FIXED_BY_OPERATOR = {"42501", "42P01", "42703", "3F000", "3D000", "26000", "42P05"}
#: SQLSTATEs of a transaction that PostgreSQL asks to repeat: serialization failure, deadlock.
_CONFLICTS = {"40001", "40P01"}
#: The maximum number of times a transaction is run.
_MAX_TRIES = 5
#: Seconds before it is run again, for each time that it was run.
_DELAY = 0.05

P = ParamSpec("P")
T = TypeVar("T")


def is_transient(error: BaseException) -> bool:
    """Return whether the same call may succeed later, without a change to the program.

    The database does not respond, is full, locked or read-only, or an operator has to do something.
    Statements and values that are wrong stay wrong.
    """
    if isinstance(error, PoolTimeoutError):
        return True
    if isinstance(error, ProgrammingError):
        return _sqlstate(error) in _FIXED_BY_OPERATOR
    return isinstance(error, DBAPIError) and not isinstance(error, DataError | IntegrityError)


def reason(error: BaseException) -> str:
    """Return what a server or its driver said, in one line."""
    lines = str(getattr(error, "orig", None) or error).strip().splitlines()
    return lines[0].rstrip(".:") if lines else type(error).__name__


def retry_on_conflict(transaction: Callable[P, T]) -> Callable[P, T]:
    """Decorate a function that is one transaction: run it again if it conflicted with another one.

    Nothing of it was committed.
    """

    @functools.wraps(transaction)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        for tries in range(1, _MAX_TRIES):
            try:
                return transaction(*args, **kwargs)
            except DBAPIError as error:
                if _sqlstate(error) not in _CONFLICTS:
                    raise
            # Jitter, so that two transactions do not conflict again.
            time.sleep(_DELAY * tries * random.uniform(0.5, 1.5))
        return transaction(*args, **kwargs)

    return run


def _sqlstate(error: DBAPIError) -> str | None:
    return getattr(error.orig, "sqlstate", None)
