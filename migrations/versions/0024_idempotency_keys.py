"""Which request stored a file or added a review, so that the same request again finds it.

Revision ID: 0024
Revises: 0023
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0024"
down_revision = "0023"
compatible_from = "0023"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns, and an index that lets an owner use a key for one file.

    Reviews of a job are added one after the other, and are few.
    """
    for table in ("files", "reviews"):
        op.add_column(table, sa.Column("idempotency_key", sa.String(255)))
        op.add_column(table, sa.Column("request_digest", sa.String(64)))
    condition = sa.text("idempotency_key IS NOT NULL")
    op.create_index(
        "ix_files_idempotency_key",
        "files",
        ["owner", "idempotency_key"],
        unique=True,
        sqlite_where=condition,
        postgresql_where=condition,
    )


def downgrade() -> None:
    """Remove them."""
    op.drop_index("ix_files_idempotency_key", "files")
    for table in ("files", "reviews"):
        op.drop_column(table, "request_digest")
        op.drop_column(table, "idempotency_key")
