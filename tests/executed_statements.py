"""The SQL statements that are executed in a block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa


@contextmanager
def executed(engine: sa.Engine | type[sa.Engine] = sa.Engine) -> Iterator[list[str]]:
    """Collect the statements that an engine executes in the block, or all engines of this process."""
    statements: list[str] = []

    def note(*arguments: Any) -> None:
        statements.append(arguments[2])

    sa.event.listen(engine, "before_cursor_execute", note)
    try:
        yield statements
    finally:
        sa.event.remove(engine, "before_cursor_execute", note)


def reads(statements: list[str]) -> list[str]:
    """Return those statements that read."""
    return [statement for statement in statements if statement.lstrip().startswith("SELECT")]
