"""The proofs that imported jobs came with.

Revision ID: 0014
Revises: 0013
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column."""
    op.add_column("jobs", sa.Column("origin_proof", sa.Text))


def downgrade() -> None:
    """Remove the column."""
    op.drop_column("jobs", "origin_proof")
