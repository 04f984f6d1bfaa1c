"""The strings that end a job's final text.

Revision ID: 0026
Revises: 0025
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0026"
down_revision = "0025"
# A worker of an older program would not stop at them.
compatible_from = "0026"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column."""
    op.add_column("jobs", sa.Column("stop", sa.Text))


def downgrade() -> None:
    """Remove it."""
    op.drop_column("jobs", "stop")
