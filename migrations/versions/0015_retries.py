"""Which failed jobs were retried, and when.

Revision ID: 0015
Revises: 0014
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns."""
    op.add_column("jobs", sa.Column("retries", sa.Text, nullable=False, server_default="[]"))
    op.add_column("jobs", sa.Column("retried_at", sa.DateTime(timezone=True)))


def downgrade() -> None:
    """Remove the columns."""
    op.drop_column("jobs", "retried_at")
    op.drop_column("jobs", "retries")
