"""Which job a job replays.

Revision ID: 0010
Revises: 0009
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column."""
    op.add_column("jobs", sa.Column("replay_of", sa.String(40)))


def downgrade() -> None:
    """Remove the column."""
    op.drop_column("jobs", "replay_of")
