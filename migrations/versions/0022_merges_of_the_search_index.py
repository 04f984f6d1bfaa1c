"""SQLite merges its search index only when it is told to.

Otherwise it does so while documents are added, and one transaction in fifty took 60 to 100 ms, for which nobody else
could write.

Revision ID: 0022
Revises: 0021
"""

from __future__ import annotations

from alembic import op

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None

#: FTS5's own default.
DEFAULT = 4


def upgrade() -> None:
    """Switch automatic merges off."""
    _set_automerge(0)


def downgrade() -> None:
    """Switch them on."""
    _set_automerge(DEFAULT)


def _set_automerge(segments: int) -> None:
    if op.get_bind().dialect.name == "sqlite":
        op.execute(
            f"INSERT INTO search_index(search_index, rank) VALUES ('automerge', {segments})"  # noqa: S608 (a number)
        )
