"""API keys, the browsers logged in with them, and the key that a job was submitted with"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

JSON = sa.JSON().with_variant(JSONB, "postgresql")
TIME = sa.DateTime(timezone=True)
QUEUED_BY_KEY = sa.text("status = 'queued' AND key_id IS NOT NULL")


def upgrade() -> None:
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("hint", sa.String(16), nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("owner", sa.String(40), nullable=False),
        sa.Column("scopes", JSON, nullable=False),
        sa.Column("max_queued", sa.Integer),
        sa.Column("requests_per_minute", sa.Integer),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("last_used_at", TIME),
        sa.Column("expires_at", TIME),
        sa.Column("revoked_at", TIME),
        sa.PrimaryKeyConstraint("id", name="pk_api_keys"),
        sa.UniqueConstraint("digest", name="uq_api_keys_digest"),
    )
    op.create_table(
        "login_sessions",
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("key_id", sa.String(40), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("expires_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("digest", name="pk_login_sessions"),
        sa.ForeignKeyConstraint(["key_id"], ["api_keys.id"], name="fk_login_sessions_key_id"),
    )
    op.create_index("ix_login_sessions_expires_at", "login_sessions", ["expires_at"])
    op.add_column("jobs", sa.Column("key_id", sa.String(40)))
    op.create_index("ix_jobs_created_at_id", "jobs", ["created_at", "id"])
    op.create_index(
        "ix_jobs_queued_by_key",
        "jobs",
        ["key_id"],
        sqlite_where=QUEUED_BY_KEY,
        postgresql_where=QUEUED_BY_KEY,
    )


def downgrade() -> None:
    op.drop_index("ix_jobs_queued_by_key", "jobs")
    op.drop_index("ix_jobs_created_at_id", "jobs")
    op.drop_column("jobs", "key_id")
    op.drop_table("login_sessions")
    op.drop_table("api_keys")
