"""Sums over ended jobs, for statistics.

Jobs that have ended before are counted as others are, by the background duty.

Revision ID: 0016
Revises: 0015
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

UNINDEXED = "finished_at IS NOT NULL AND worker_id IS NULL AND unindexed > 0"
UNCOUNTED = "finished_at IS NOT NULL AND worker_id IS NULL AND (unindexed > 0 OR counted IS NULL)"


def upgrade() -> None:
    """Add the tables, and let the duty find the jobs that are not counted."""
    op.create_table(
        "rollups",
        sa.Column("owner", sa.String(40), nullable=False),
        sa.Column("level", sa.String(16), nullable=False),
        sa.Column("start", sa.DateTime(timezone=True), nullable=False),
        sa.Column("model", sa.String(64), nullable=False),
        sa.Column("jobs", sa.Integer, nullable=False),
        sa.Column("tally", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("owner", "level", "start", "model", name="pk_rollups"),
        sa.CheckConstraint("level IN ('hour', 'day', 'month')", name="level"),
    )
    op.create_table(
        "rollup_models",
        sa.Column("model", sa.String(64), nullable=False),
        sa.Column("description", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("model", name="pk_rollup_models"),
    )
    op.add_column("jobs", sa.Column("counted", sa.Text))
    _index(UNCOUNTED)


def downgrade() -> None:
    """Remove the sums. A later upgrade makes them again."""
    _index(UNINDEXED)
    op.drop_column("jobs", "counted")
    op.drop_table("rollup_models")
    op.drop_table("rollups")


def _index(where: str) -> None:
    """Change the condition of the partial index of jobs that the duty looks at."""
    op.drop_index("ix_jobs_unindexed", "jobs")
    condition = sa.text(where)
    op.create_index(
        "ix_jobs_unindexed",
        "jobs",
        ["finished_at"],
        sqlite_where=condition,
        postgresql_where=condition,
    )
