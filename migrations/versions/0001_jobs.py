"""Tables of jobs, attempts, workers and tokenizers"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

JSON = sa.JSON().with_variant(JSONB, "postgresql")
OPEN = sa.text("status IN ('queued', 'in_progress')")
LEASED = sa.text("lease_expires_at IS NOT NULL")


def _time(name: str, *, nullable: bool = False) -> "sa.Column[object]":
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable)


def _enum(name: str, *values: str) -> sa.Enum:
    return sa.Enum(*values, name=name, native_enum=False, create_constraint=True, length=16)


def upgrade() -> None:
    op.create_table(
        "tokenizers",
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("body", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "workers",
        sa.Column("id", sa.String(40), primary_key=True),
        sa.Column("host", sa.Text, nullable=False),
        sa.Column("pid", sa.Integer, nullable=False),
        sa.Column("state", _enum("state", "loading", "ready", "stopped"), nullable=False),
        _time("started_at"),
        _time("seen_at"),
        _time("stopped_at", nullable=True),
        sa.Column("runtime", JSON, nullable=False),
        sa.Column("context", sa.Integer, nullable=False),
        sa.Column(
            "tokenizer_digest", sa.String(64), sa.ForeignKey("tokenizers.digest"), nullable=False
        ),
    )
    op.create_index("ix_workers_started_at", "workers", ["started_at"])
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(40), primary_key=True),
        sa.Column(
            "status",
            _enum(
                "status", "queued", "in_progress", "completed", "failed", "cancelled", "incomplete"
            ),
            nullable=False,
        ),
        sa.Column("question", sa.Text, nullable=False),
        sa.Column("system", sa.Text, nullable=False),
        sa.Column("temperature", sa.Double, nullable=False),
        sa.Column("top_k", sa.Integer, nullable=False),
        sa.Column("top_p", sa.Double, nullable=False),
        sa.Column("max_output_tokens", sa.Integer, nullable=False),
        sa.Column("seed", sa.BigInteger, nullable=False),
        sa.Column("rounds", sa.Integer, nullable=False),
        sa.Column("priority", sa.Integer, nullable=False),
        sa.Column("background", sa.Boolean, nullable=False),
        sa.Column("metadata", JSON, nullable=False),
        sa.Column("idempotency_key", sa.String(255), unique=True),
        sa.Column("request_digest", sa.String(64)),
        _time("created_at"),
        _time("started_at", nullable=True),
        _time("finished_at", nullable=True),
        _time("deadline_at", nullable=True),
        sa.Column("position", sa.Integer, nullable=False),
        _time("ready_at"),
        _time("published_at", nullable=True),
        sa.Column("lease_token", sa.Integer, nullable=False),
        _time("lease_expires_at", nullable=True),
        sa.Column("worker_id", sa.String(40), sa.ForeignKey("workers.id")),
        sa.Column("error_code", sa.String(64)),
        sa.Column("error_message", sa.Text),
    )
    op.create_index("ix_jobs_created_at_id", "jobs", ["created_at", "id"])
    op.create_index(
        "ix_jobs_open",
        "jobs",
        ["status", "lease_expires_at", "ready_at"],
        sqlite_where=OPEN,
        postgresql_where=OPEN,
    )
    op.create_index(
        "ix_jobs_worker_id", "jobs", ["worker_id"], sqlite_where=LEASED, postgresql_where=LEASED
    )
    op.create_table(
        "attempts",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column(
            "job_id", sa.String(40), sa.ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False
        ),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("role", _enum("role", "actor", "critic", "regenerator"), nullable=False),
        sa.Column("round", sa.Integer, nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("lease_token", sa.Integer, nullable=False),
        sa.Column("worker_id", sa.String(40), sa.ForeignKey("workers.id"), nullable=False),
        sa.Column(
            "status",
            _enum("status", "running", "finished", "failed", "lost", "released", "cancelled"),
            nullable=False,
        ),
        sa.Column("prompt", sa.Text, nullable=False),
        sa.Column("output", sa.Text),
        sa.Column("deltas", JSON),
        sa.Column("temperature", sa.Double, nullable=False),
        sa.Column("top_k", sa.Integer, nullable=False),
        sa.Column("top_p", sa.Double, nullable=False),
        sa.Column("max_output_tokens", sa.Integer, nullable=False),
        sa.Column("seed", sa.BigInteger, nullable=False),
        sa.Column("prompt_tokens", sa.Integer),
        sa.Column("output_tokens", sa.Integer),
        sa.Column("finish_reason", sa.String(16)),
        _time("queued_at"),
        _time("started_at"),
        _time("first_token_at", nullable=True),
        _time("finished_at", nullable=True),
        sa.Column("error", sa.Text),
        sa.UniqueConstraint("job_id", "position", "number"),
    )


def downgrade() -> None:
    for table in ("attempts", "jobs", "workers", "tokenizers"):
        op.drop_table(table)
