"""What a next version might add: columns, one of them with a default for existing rows, an index and a table."""

from pathlib import Path

import sqlalchemy as sa
from alembic import op

import migrations

revision = "next_expand"
down_revision = compatible_from = max(Path(migrations.__file__).parent.glob("versions/0*.py")).name[
    :4
]


def upgrade() -> None:
    op.add_column("jobs", sa.Column("next_note", sa.Text))
    op.add_column("jobs", sa.Column("next_count", sa.Integer, nullable=False, server_default="0"))
    op.add_column("attempts", sa.Column("next_note", sa.Text))
    op.create_index("ix_jobs_next", "jobs", ["next_count", "id"])
    op.create_table("next_things", sa.Column("id", sa.Integer, primary_key=True))


def downgrade() -> None:
    op.drop_table("next_things")
    op.drop_index("ix_jobs_next", "jobs")
    op.drop_column("attempts", "next_note")
    op.drop_column("jobs", "next_count")
    op.drop_column("jobs", "next_note")
