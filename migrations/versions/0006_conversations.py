"""Messages of a request, the turns in prompts, parameters that responses repeat; lists by status"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

INDEX = "ix_jobs_owner_status_created_at_id"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("input_items", sa.Text))
    op.add_column("jobs", sa.Column("turns", sa.Text))
    op.add_column("jobs", sa.Column("previous_response_id", sa.String(40)))
    op.add_column("jobs", sa.Column("options", sa.Text))
    op.create_index(INDEX, "jobs", ["owner", "status", "created_at", "id"])


def downgrade() -> None:
    op.drop_index(INDEX, "jobs")
    for column in ("options", "previous_response_id", "turns", "input_items"):
        op.drop_column("jobs", column)
