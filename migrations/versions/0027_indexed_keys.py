"""Jobs of API keys are indexed again: the search index has the key of a job.

Revision ID: 0027
Revises: 0026
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0027"
down_revision = "0026"
compatible_from = "0026"
branch_labels = None
depends_on = None

JOBS = sa.table("jobs", sa.column("key_id"), sa.column("finished_at"), sa.column("unindexed"))


def upgrade() -> None:
    """Count a change of each, which the background duties index."""
    indexed = sa.and_(JOBS.c.key_id.is_not(None), JOBS.c.finished_at.is_not(None))
    op.execute(sa.update(JOBS).where(indexed).values(unindexed=JOBS.c.unindexed + 1))


def downgrade() -> None:
    """Do nothing: an older program does not search for the terms of keys."""
