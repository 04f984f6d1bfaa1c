"""The transparency log, and each job's place in it.

Jobs that have ended before are sealed as others are: the oldest first, by the background duty.

Revision ID: 0011
Revises: 0010
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)
ROW_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")
UNSEALED = sa.text("finished_at IS NOT NULL AND worker_id IS NULL AND log_index IS NULL")
TABLES = (
    "log_deletions",
    "log_checkpoints",
    "log_tiles",
    "log_entries",
    "log_keys",
    "log_state",
)


def upgrade() -> None:
    """Add the tables of an empty log, and the columns of jobs."""
    state = op.create_table(
        "log_state",
        sa.Column("id", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("origin", sa.Text),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_log_state"),
    )
    op.create_table(
        "log_keys",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("verifier", sa.Text, nullable=False),
        sa.Column("private", sa.LargeBinary),
        sa.Column("created_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_log_keys"),
        sa.UniqueConstraint("verifier", name="uq_log_keys_verifier"),
    )
    op.create_table(
        "log_entries",
        sa.Column("entry_index", ROW_ID, nullable=False, autoincrement=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("job_id", sa.String(40), nullable=False),
        sa.Column("entry", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("entry_index", name="pk_log_entries"),
        sa.CheckConstraint("kind IN ('job', 'deletion')", name=op.f("ck_log_entries_kind")),
    )
    op.create_index("ix_log_entries_job_id", "log_entries", ["job_id"])
    op.create_table(
        "log_tiles",
        sa.Column("level", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("tile_index", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("hashes", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("level", "tile_index", name="pk_log_tiles"),
    )
    op.create_table(
        "log_checkpoints",
        sa.Column("size", ROW_ID, nullable=False, autoincrement=False),
        sa.Column("note", sa.Text, nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("size", name="pk_log_checkpoints"),
    )
    op.create_table(
        "log_deletions",
        sa.Column("entry_index", ROW_ID, nullable=False, autoincrement=False),
        sa.Column("job_id", sa.String(40), nullable=False),
        sa.PrimaryKeyConstraint("entry_index", name="pk_log_deletions"),
    )
    op.bulk_insert(state, [{"id": 1, "size": 0}])
    op.add_column("jobs", sa.Column("log_index", sa.BigInteger))
    op.add_column("jobs", sa.Column("log_salt", sa.LargeBinary))
    op.create_index(
        "ix_jobs_unsealed",
        "jobs",
        ["finished_at"],
        sqlite_where=UNSEALED,
        postgresql_where=UNSEALED,
    )


def downgrade() -> None:
    """Remove the log. A later upgrade begins a new one, with all jobs that are there."""
    op.drop_index("ix_jobs_unsealed", "jobs")
    op.drop_column("jobs", "log_salt")
    op.drop_column("jobs", "log_index")
    for table in TABLES:
        op.drop_table(table)
