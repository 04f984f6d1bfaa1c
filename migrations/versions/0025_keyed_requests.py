"""Requests that changed something and had an idempotency key, so that the same request again changes nothing more.

Revision ID: 0025
Revises: 0024
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0025"
down_revision = "0024"
compatible_from = "0023"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table."""
    op.create_table(
        "keyed_requests",
        sa.Column("owner", sa.String(40), nullable=False),
        sa.Column("key", sa.String(255), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("outcome", sa.JSON().with_variant(JSONB, "postgresql")),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("owner", "key", name="pk_keyed_requests"),
    )
    op.create_index("ix_keyed_requests_created_at", "keyed_requests", ["created_at"])


def downgrade() -> None:
    """Remove it."""
    op.drop_table("keyed_requests")
