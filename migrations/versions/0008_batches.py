"""Files, batches, and the batch that a job is a line of"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

ROW = sa.String(40)
TIME = sa.DateTime(timezone=True)
JSON = sa.JSON().with_variant(JSONB, "postgresql")

#: Partial indexes: (name, table, columns, condition).
PARTIAL = (
    ("ix_jobs_queued_lines", "jobs", ["batch_id"], "status = 'queued' AND batch_id IS NOT NULL"),
    ("ix_files_expires_at", "files", ["expires_at"], "expires_at IS NOT NULL"),
    ("ix_files_unfinished", "files", ["state", "created_at"], "state <> 'processed'"),
    ("ix_batches_open", "batches", ["created_at"], "ended_at IS NULL"),
    ("ix_batches_ended_at", "batches", ["ended_at"], "ended_at IS NOT NULL"),
    ("ix_batch_lines_submitted", "batch_lines", ["batch_id", "number"], "job_id IS NOT NULL"),
)


def _one_of(name: str, column: str, *values: str) -> sa.CheckConstraint:
    listed = ", ".join(f"'{value}'" for value in values)
    return sa.CheckConstraint(f"{column} IN ({listed})", name=op.f(name))


def upgrade() -> None:
    op.create_table(
        "files",
        sa.Column("id", ROW, nullable=False),
        sa.Column("owner", ROW, nullable=False),
        sa.Column("purpose", sa.String(16), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("expires_at", TIME),
        sa.PrimaryKeyConstraint("id", name="pk_files"),
        _one_of("ck_files_purpose", "purpose", "batch", "batch_output"),
        _one_of("ck_files_state", "state", "uploading", "writing", "processed", "deleted"),
    )
    op.create_index("ix_files_owner_created_at_id", "files", ["owner", "created_at", "id"])
    op.create_index("ix_files_created_at", "files", ["created_at"])
    op.create_table(
        "file_chunks",
        sa.Column("file_id", ROW, nullable=False),
        sa.Column("start", sa.BigInteger, nullable=False),
        sa.Column("data", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("file_id", "start", name="pk_file_chunks"),
        sa.ForeignKeyConstraint(["file_id"], ["files.id"], name="fk_file_chunks_file_id"),
    )
    op.create_table(
        "batches",
        sa.Column("id", ROW, nullable=False),
        sa.Column("owner", ROW, nullable=False),
        sa.Column("key_id", ROW),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("endpoint", ROW, nullable=False),
        sa.Column("chat_context", sa.String(16), nullable=False),
        sa.Column("metadata", JSON, nullable=False),
        sa.Column("idempotency_key", sa.String(255)),
        sa.Column("request_digest", sa.String(64)),
        sa.Column("input_file_id", ROW, nullable=False),
        sa.Column("output_file_id", ROW),
        sa.Column("error_file_id", ROW),
        sa.Column("output_expires_after", sa.Integer),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("expires_at", TIME, nullable=False),
        sa.Column("in_progress_at", TIME),
        sa.Column("finalizing_at", TIME),
        sa.Column("cancelling_at", TIME),
        sa.Column("ended_at", TIME),
        sa.Column("validated_bytes", sa.BigInteger, nullable=False),
        sa.Column("validated_lines", sa.Integer, nullable=False),
        sa.Column("errors", sa.Text, nullable=False),
        sa.Column("submitted_line", sa.Integer, nullable=False),
        sa.Column("total", sa.Integer, nullable=False),
        sa.Column("completed", sa.Integer, nullable=False),
        sa.Column("failed", sa.Integer, nullable=False),
        sa.Column("input_tokens", sa.BigInteger, nullable=False),
        sa.Column("output_tokens", sa.BigInteger, nullable=False),
        sa.Column("reasoning_tokens", sa.BigInteger, nullable=False),
        sa.Column("runner", ROW),
        sa.Column("leased_until", TIME),
        sa.PrimaryKeyConstraint("id", name="pk_batches"),
        sa.UniqueConstraint("owner", "idempotency_key", name="uq_batches_owner_idempotency_key"),
        _one_of(
            "ck_batches_status",
            "status",
            "validating",
            "failed",
            "in_progress",
            "finalizing",
            "completed",
            "expired",
            "cancelling",
            "cancelled",
        ),
    )
    op.create_index("ix_batches_owner_created_at_id", "batches", ["owner", "created_at", "id"])
    op.create_index("ix_batches_input_file_id", "batches", ["input_file_id"])
    op.create_table(
        "batch_lines",
        sa.Column("batch_id", ROW, nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("custom_id", sa.Text, nullable=False),
        sa.Column("start", sa.BigInteger, nullable=False),
        sa.Column("length", sa.Integer, nullable=False),
        sa.Column("job_id", ROW),
        sa.PrimaryKeyConstraint("batch_id", "number", name="pk_batch_lines"),
        sa.UniqueConstraint("batch_id", "custom_id", name="uq_batch_lines_batch_id_custom_id"),
        sa.ForeignKeyConstraint(["batch_id"], ["batches.id"], name="fk_batch_lines_batch_id"),
    )
    op.add_column("jobs", sa.Column("batch_id", ROW))
    op.add_column("jobs", sa.Column("custom_id", sa.Text))
    for name, table, columns, condition in PARTIAL:
        where = sa.text(condition)
        op.create_index(name, table, columns, sqlite_where=where, postgresql_where=where)


def downgrade() -> None:
    op.drop_index("ix_jobs_queued_lines", "jobs")
    op.drop_column("jobs", "custom_id")
    op.drop_column("jobs", "batch_id")
    for table in ("batch_lines", "batches", "file_chunks", "files"):
        op.drop_table(table)
