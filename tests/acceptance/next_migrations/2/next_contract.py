"""What the version after the next might remove: a column and an index that the next version no longer uses."""

import sqlalchemy as sa
from alembic import op

revision = "next_contract"
down_revision = compatible_from = "next_expand"


def upgrade() -> None:
    op.drop_index("ix_jobs_next", "jobs")
    op.drop_column("jobs", "next_count")


def downgrade() -> None:
    op.add_column("jobs", sa.Column("next_count", sa.Integer, nullable=False, server_default="0"))
    op.create_index("ix_jobs_next", "jobs", ["next_count", "id"])
