"""Pauses of the queue, and what workers use.

Revision ID: 0018
Revises: 0017
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table and the column."""
    op.create_table(
        "pauses",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), nullable=False),
        sa.Column("paused_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("paused_by", sa.Text, nullable=False),
        sa.Column("note", sa.Text),
        sa.Column("resumed_at", sa.DateTime(timezone=True)),
        sa.Column("resumed_by", sa.Text),
        sa.PrimaryKeyConstraint("id", name="pk_pauses"),
    )
    condition = sa.text("resumed_at IS NULL")
    op.create_index(
        "ix_pauses_current",
        "pauses",
        ["id"],
        sqlite_where=condition,
        postgresql_where=condition,
    )
    op.add_column("workers", sa.Column("usage", sa.JSON().with_variant(JSONB, "postgresql")))


def downgrade() -> None:
    """Remove them. A queue that is paused is resumed by it."""
    op.drop_column("workers", "usage")
    op.drop_table("pauses")
