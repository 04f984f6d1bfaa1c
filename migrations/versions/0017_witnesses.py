"""Witnesses of the transparency log, their cosignatures, and receivers of traces.

Revision ID: 0017
Revises: 0016
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the tables."""
    op.create_table(
        "log_witnesses",
        sa.Column("witness", sa.Text, nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("failures", sa.Integer, nullable=False),
        sa.Column("next_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("witness", name="pk_log_witnesses"),
    )
    op.create_table(
        "log_cosignatures",
        sa.Column("size", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("witness", sa.Text, nullable=False),
        sa.Column("line", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("size", "witness", name="pk_log_cosignatures"),
    )
    op.create_index("ix_log_cosignatures_witness_size", "log_cosignatures", ["witness", "size"])
    op.create_table(
        "trace_receivers",
        sa.Column("receiver", sa.String(64), nullable=False),
        sa.Column("next_index", sa.BigInteger, nullable=False),
        sa.Column("failures", sa.Integer, nullable=False),
        sa.Column("next_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("receiver", name="pk_trace_receivers"),
    )


def downgrade() -> None:
    """Remove the tables. Witnesses are asked again after an upgrade; traces go on with the jobs that end then."""
    op.drop_table("trace_receivers")
    op.drop_table("log_cosignatures")
    op.drop_table("log_witnesses")
