"""Reviews of jobs, and erasures of their texts.

Revision ID: 0013
Revises: 0012
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)
ROW_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")
UNSEALED = sa.text("log_index IS NULL")
RATED = sa.text("rating IS NOT NULL")
INDEXES = {
    "ix_jobs_rating": ["rating", "created_at", "id"],
    "ix_jobs_owner_rating": ["owner", "rating", "created_at", "id"],
}
KINDS = "kind IN ('job', 'deletion', 'review', 'erasure')"
OLD_KINDS = "kind IN ('job', 'deletion')"

#: The columns of attempts and reviews that an erasure changes, each with the condition that it may: an
#: empty text takes the place of a text.
ATTEMPT_TEXTS = ("prompt", "output", "error")
REVIEW_TEXTS = ("reviewer", "corrected_answer", "note")
#: All other columns.
ATTEMPT_FIXED = (
    "id",
    "job_id",
    "stage_index",
    "role",
    "round",
    "run",
    "number",
    "lease_token",
    "worker_id",
    "status",
    "temperature",
    "top_k",
    "top_p",
    "max_output_tokens",
    "seed",
    "prompt_tokens",
    "output_tokens",
    "finish_reason",
    "queued_at",
    "started_at",
    "first_token_at",
    "finished_at",
)
REVIEW_FIXED = (
    "id",
    "job_id",
    "number",
    "key_id",
    "critique",
    "regeneration",
    "created_at",
)
ERASURE_FIXED = ("id", "job_id", "texts", "erased_by", "key_id", "created_at")

#: What triggers say.
ATTEMPT_KEPT = "an attempt that has ended never changes"
REVIEW_KEPT = "a review never changes"
ERASURE_KEPT = "an erasure never changes"

ENDED = "OLD.status <> 'running'"
ERASED = "EXISTS (SELECT 1 FROM erasures WHERE erasures.job_id = OLD.job_id)"
JOB_THERE = "EXISTS (SELECT 1 FROM jobs WHERE jobs.id = OLD.job_id)"


def upgrade() -> None:
    """Add the tables and columns, and let the triggers pass erasures."""
    dialect = op.get_bind().dialect.name
    op.create_table(
        "reviews",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("job_id", sa.String(40), nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("reviewer", sa.Text, nullable=False),
        sa.Column("key_id", sa.String(40)),
        sa.Column("critique", sa.Integer),
        sa.Column("regeneration", sa.Integer),
        sa.Column("corrected_answer", sa.Text),
        sa.Column("tags", sa.Text, nullable=False),
        sa.Column("note", sa.Text),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("log_index", sa.BigInteger),
        sa.Column("log_salt", sa.LargeBinary),
        sa.Column("log_salts", sa.Text),
        sa.PrimaryKeyConstraint("id", name="pk_reviews"),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name="fk_reviews_job_id", ondelete="CASCADE"
        ),
        sa.UniqueConstraint("job_id", "number", name="uq_reviews_job_id_number"),
        sa.CheckConstraint("critique BETWEEN -1 AND 1", name=op.f("ck_reviews_critique")),
        sa.CheckConstraint("regeneration BETWEEN -1 AND 1", name=op.f("ck_reviews_regeneration")),
    )
    op.create_index("ix_reviews_created_at_id", "reviews", ["created_at", "id"])
    op.create_index(
        "ix_reviews_unsealed",
        "reviews",
        ["created_at"],
        sqlite_where=UNSEALED,
        postgresql_where=UNSEALED,
    )
    op.create_table(
        "erasures",
        sa.Column("id", ROW_ID, nullable=False),
        sa.Column("job_id", sa.String(40), nullable=False),
        sa.Column("texts", sa.Text, nullable=False),
        sa.Column("erased_by", sa.Text, nullable=False),
        sa.Column("key_id", sa.String(40)),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("log_index", sa.BigInteger),
        sa.PrimaryKeyConstraint("id", name="pk_erasures"),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name="fk_erasures_job_id", ondelete="CASCADE"
        ),
    )
    op.create_index("ix_erasures_job_id", "erasures", ["job_id"])
    op.create_index(
        "ix_erasures_unsealed",
        "erasures",
        ["id"],
        sqlite_where=UNSEALED,
        postgresql_where=UNSEALED,
    )
    op.add_column("jobs", sa.Column("log_salts", sa.Text))
    op.add_column("jobs", sa.Column("erased", sa.Text))
    op.add_column("jobs", sa.Column("erased_at", TIME))
    op.add_column("jobs", sa.Column("rating", sa.Integer))
    for index, columns in INDEXES.items():
        op.create_index(index, "jobs", columns, sqlite_where=RATED, postgresql_where=RATED)
    _set_kinds(KINDS)
    _drop_attempts_keep(dialect)
    _keep_all(dialect)


def downgrade() -> None:
    """Remove reviews and erasures.

    An older program can read neither their entries nor the records of erased texts. If there are any, the log
    begins anew, with its key, and erased texts are empty ones.
    """
    dialect = op.get_bind().dialect.name
    for table in ("attempts", "reviews", "erasures"):
        _drop_keep(dialect, table)
    later = "SELECT 1 FROM log_entries WHERE kind IN ('review', 'erasure') LIMIT 1"
    erased = "SELECT 1 FROM jobs WHERE erased_at IS NOT NULL LIMIT 1"
    if any(op.get_bind().scalar(sa.text(query)) for query in (later, erased)):
        for table in ("log_entries", "log_tiles", "log_checkpoints", "log_deletions"):
            op.execute(f"DELETE FROM {table}")  # noqa: S608 (of this file's own words)
        op.execute("UPDATE log_state SET size = 0")
        op.execute("UPDATE jobs SET log_index = NULL, log_salt = NULL WHERE log_index IS NOT NULL")
    _set_kinds(OLD_KINDS)
    for index in INDEXES:
        op.drop_index(index, "jobs")
    for column in ("rating", "erased_at", "erased", "log_salts"):
        op.drop_column("jobs", column)
    op.drop_table("erasures")
    op.drop_table("reviews")
    _keep(dialect, "attempts", ATTEMPT_KEPT, ENDED, when=ENDED)


def _set_kinds(condition: str) -> None:
    """Change which kinds the entries of the log may have. On SQLite, the table is copied."""
    if op.get_bind().dialect.name == "postgresql":
        op.drop_constraint(op.f("ck_log_entries_kind"), "log_entries", type_="check")
        op.create_check_constraint(op.f("ck_log_entries_kind"), "log_entries", condition)
        return
    table = sa.Table(
        "log_entries",
        sa.MetaData(),
        sa.Column("entry_index", ROW_ID, nullable=False, autoincrement=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("job_id", sa.String(40), nullable=False),
        sa.Column("entry", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("entry_index", name="pk_log_entries"),
        sa.CheckConstraint(condition, name=op.f("ck_log_entries_kind")),
        sa.Index("ix_log_entries_job_id", "job_id"),
    )
    with op.batch_alter_table("log_entries", copy_from=table, recreate="always"):
        pass


def _keep_all(dialect: str) -> None:
    sealed = "OLD.log_index IS NULL"
    unchanged = _same(dialect, ("log_index",))
    _keep(
        dialect,
        "attempts",
        ATTEMPT_KEPT,
        f"NOT ({ERASED} AND {_same(dialect, ATTEMPT_FIXED)} AND "
        f"{_erased(dialect, ATTEMPT_TEXTS)} AND ({_same(dialect, ('delta_lengths',))} OR "
        "(NEW.output = '' AND NEW.delta_lengths IS NULL)))",
        when=ENDED,
    )
    salts = ("log_salt", "log_salts")
    _keep(
        dialect,
        "reviews",
        REVIEW_KEPT,
        f"NOT ({_same(dialect, REVIEW_FIXED)} AND ({unchanged} OR {sealed}) AND "
        f"({_same(dialect, (*REVIEW_TEXTS, 'tags', *salts))} OR ({ERASED} AND "
        f"{_erased(dialect, REVIEW_TEXTS)} AND ({_same(dialect, ('tags',))} OR NEW.tags = '[]'))))",
        deletes=JOB_THERE,
    )
    _keep(
        dialect,
        "erasures",
        ERASURE_KEPT,
        f"NOT ({_same(dialect, ERASURE_FIXED)} AND ({unchanged} OR {sealed}))",
        deletes=JOB_THERE,
    )


def _same(dialect: str, columns: tuple[str, ...]) -> str:
    """Return the condition that columns do not change."""
    operator = "IS" if dialect == "sqlite" else "IS NOT DISTINCT FROM"
    return "(" + " AND ".join(f"NEW.{name} {operator} OLD.{name}" for name in columns) + ")"


def _erased(dialect: str, columns: tuple[str, ...]) -> str:
    """Return the condition that texts are as they were, or empty."""
    conditions = (
        f"({_same(dialect, (name,))} OR (NEW.{name} = '' AND OLD.{name} IS NOT NULL))"
        for name in columns
    )
    return "(" + " AND ".join(conditions) + ")"


def _keep(
    dialect: str,
    table: str,
    says: str,
    updates: str,
    *,
    deletes: str | None = None,
    when: str = "",
) -> None:
    """Add the triggers that refuse updates, and deletes, of rows under a condition.

    Args:
        dialect: of the database.
        table: that gets them.
        says: what they say.
        updates, deletes: the conditions.
        when: a condition on the row alone, which costs no call of a function where it does not hold.
    """
    events = [("UPDATE", "", updates, "NEW")]
    if deletes is not None:
        events.append(("DELETE", "_rows", deletes, "OLD"))
    for event, suffix, condition, row in events:
        name = f"{table}_keep{suffix}"
        if dialect == "sqlite":
            both = f"{when} AND {condition}" if when else condition
            op.execute(
                f"CREATE TRIGGER {name} BEFORE {event} ON {table} WHEN {both} "
                f"BEGIN SELECT RAISE(ABORT, '{says}'); END"
            )
            continue
        op.execute(
            f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            f"IF {condition} THEN RAISE EXCEPTION '{says}' "
            "USING ERRCODE = 'integrity_constraint_violation'; END IF; "
            f"RETURN {row}; END $$"
        )
        op.execute(
            f"CREATE TRIGGER {name} BEFORE {event} ON {table} FOR EACH ROW "
            f"{f'WHEN ({when}) ' if when else ''}EXECUTE FUNCTION {name}()"
        )


def _drop_attempts_keep(dialect: str) -> None:
    if dialect == "sqlite":
        op.execute("DROP TRIGGER attempts_keep")
    else:
        op.execute("DROP TRIGGER attempts_keep ON attempts")
        op.execute("DROP FUNCTION attempts_keep")


def _drop_keep(dialect: str, table: str) -> None:
    for name in (f"{table}_keep", *([] if table == "attempts" else [f"{table}_keep_rows"])):
        if dialect == "sqlite":
            op.execute(f"DROP TRIGGER {name}")
        else:
            op.execute(f"DROP TRIGGER {name} ON {table}")
            op.execute(f"DROP FUNCTION {name}")
