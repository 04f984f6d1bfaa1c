"""The condition that rows belong to an owner. The owner None stands for all owners."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.orm import InstrumentedAttribute


def is_owned(owner_column: InstrumentedAttribute[str], owner: str | None) -> sa.ColumnElement[bool]:
    """Return the condition that a row is an owner's; one that all rows meet if the owner is None."""
    return sa.true() if owner is None else owner_column == owner
