"""An index of the replays of a job.

Revision ID: 0019
Revises: 0018
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the index."""
    condition = sa.text("replay_of IS NOT NULL")
    op.create_index(
        "ix_jobs_replay_of",
        "jobs",
        ["replay_of", "created_at", "id"],
        sqlite_where=condition,
        postgresql_where=condition,
    )


def downgrade() -> None:
    """Remove the index."""
    op.drop_index("ix_jobs_replay_of", "jobs")
