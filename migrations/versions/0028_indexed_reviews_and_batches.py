"""Jobs with reviews and of batches are indexed again: the index has reviewers, tags, ratings of critiques, and batches.

Revision ID: 0028
Revises: 0027
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0028"
down_revision = "0027"
compatible_from = "0027"
branch_labels = None
depends_on = None

JOBS = sa.table(
    "jobs",
    sa.column("id"),
    sa.column("batch_id"),
    sa.column("finished_at"),
    sa.column("unindexed"),
)
REVIEWS = sa.table("reviews", sa.column("job_id"))


def upgrade() -> None:
    """Count a change of each, which the background duties index."""
    concerned = sa.or_(JOBS.c.batch_id.is_not(None), JOBS.c.id.in_(sa.select(REVIEWS.c.job_id)))
    indexed = sa.and_(concerned, JOBS.c.finished_at.is_not(None))
    op.execute(sa.update(JOBS).where(indexed).values(unindexed=JOBS.c.unindexed + 1))


def downgrade() -> None:
    """Do nothing: an older program does not search for their terms."""
