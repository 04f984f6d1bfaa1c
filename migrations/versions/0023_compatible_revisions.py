"""The database says whose programs run on its schema.

Revision ID: 0023
Revises: 0022
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0023"
down_revision = "0022"
compatible_from = "0022"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table. `migrations.compatibility` fills it."""
    op.create_table("compatible_revisions", sa.Column("revision", sa.String(32), primary_key=True))


def downgrade() -> None:
    """Remove the table."""
    op.drop_table("compatible_revisions")
