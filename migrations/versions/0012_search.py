"""Full-text search, and what jobs are filtered by.

Jobs that have ended before are indexed as others are, by the background duty.

Revision ID: 0012
Revises: 0011
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

ROW_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")
UNINDEXED = sa.text("finished_at IS NOT NULL AND worker_id IS NULL AND unindexed > 0")

# The terms come folded and separated, so the tokenizer only has to cut at spaces. There are no positions
# (`detail`): phrases are looked up in the documents. The documents' triggers delete what they inserted.
SQLITE = (
    "CREATE VIRTUAL TABLE search_index USING fts5(terms, content='search_documents', content_rowid='id', "
    "columnsize=0, detail=none, tokenize=\"ascii tokenchars '_'\")",
    "CREATE TRIGGER search_index_insert AFTER INSERT ON search_documents BEGIN "
    "INSERT INTO search_index (rowid, terms) VALUES (new.id, new.terms); END",
    "CREATE TRIGGER search_index_delete AFTER DELETE ON search_documents BEGIN "
    "INSERT INTO search_index (search_index, rowid, terms) VALUES ('delete', old.id, old.terms); END",
)
# The pending list is searched one by one, so it is kept short.
POSTGRESQL = (
    "CREATE INDEX search_index ON search_documents "
    "USING gin (array_to_tsvector(string_to_array(terms, ' '))) WITH (gin_pending_list_limit = 256)",
)


def upgrade() -> None:
    """Add the documents and their index, and count all jobs as not indexed."""
    op.create_table(
        "search_documents",
        sa.Column("id", ROW_ID, nullable=False, autoincrement=False),
        sa.Column("job_id", sa.String(40), nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("changed", sa.Double),
        sa.Column("duration", sa.Double, nullable=False),
        sa.Column("details", sa.JSON().with_variant(JSONB, "postgresql"), nullable=False),
        sa.Column("terms", sa.Text, nullable=False),
        sa.Column("words", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_search_documents"),
        sa.UniqueConstraint("job_id", name="uq_search_documents_job_id"),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name="fk_search_documents_job_id", ondelete="CASCADE"
        ),
    )
    sqlite = op.get_bind().dialect.name == "sqlite"
    for statement in SQLITE if sqlite else POSTGRESQL:
        op.execute(statement)
    op.add_column(
        "jobs", sa.Column("unindexed", sa.Integer, nullable=False, server_default=sa.text("1"))
    )
    op.create_index(
        "ix_jobs_unindexed",
        "jobs",
        ["finished_at"],
        sqlite_where=UNINDEXED,
        postgresql_where=UNINDEXED,
    )


def downgrade() -> None:
    """Remove the index. A later upgrade builds it again."""
    op.drop_index("ix_jobs_unindexed", "jobs")
    op.drop_column("jobs", "unindexed")
    if op.get_bind().dialect.name == "sqlite":
        op.execute("DROP TABLE search_index")
    op.drop_table("search_documents")
