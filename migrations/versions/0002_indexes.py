"""A trigger that protects ended attempts, and indexes for all queries of a long history"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

#: New indexes and the ones they replace: (name, table, columns, condition).
NEW = (
    ("ix_jobs_queued", "jobs", ["priority", "published_at"], "status = 'queued'"),
    ("ix_jobs_in_progress", "jobs", ["deadline_at"], "status = 'in_progress'"),
    (
        "ix_jobs_outbox",
        "jobs",
        ["created_at"],
        "published_at IS NULL AND status IN ('queued', 'in_progress')",
    ),
    ("ix_jobs_leased", "jobs", ["worker_id", "lease_expires_at"], "worker_id IS NOT NULL"),
    ("ix_jobs_finished_at", "jobs", ["finished_at"], "finished_at IS NOT NULL"),
    ("ix_attempts_worker_id", "attempts", ["worker_id"], None),
    ("ix_workers_seen_at", "workers", ["seen_at"], None),
    ("ix_workers_unstopped", "workers", ["started_at"], "stopped_at IS NULL"),
    ("ix_workers_process", "workers", ["host", "pid", "started_at"], "stopped_at IS NULL"),
)
OLD = (
    (
        "ix_jobs_open",
        "jobs",
        ["status", "lease_expires_at", "ready_at"],
        "status IN ('queued', 'in_progress')",
    ),
    ("ix_jobs_worker_id", "jobs", ["worker_id"], "lease_expires_at IS NOT NULL"),
)

KEEP = {
    "sqlite": (
        """
        CREATE TRIGGER attempts_keep BEFORE UPDATE ON attempts WHEN OLD.status <> 'running'
        BEGIN SELECT RAISE(ABORT, 'an attempt that has ended never changes'); END
        """,
    ),
    "postgresql": (
        """
        CREATE FUNCTION attempts_keep() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN
            RAISE EXCEPTION 'an attempt that has ended never changes'
            USING ERRCODE = 'integrity_constraint_violation';
        END $$
        """,
        """
        CREATE TRIGGER attempts_keep BEFORE UPDATE ON attempts
        FOR EACH ROW WHEN (OLD.status <> 'running') EXECUTE FUNCTION attempts_keep()
        """,
    ),
}
FORGET = {
    "sqlite": ("DROP TRIGGER attempts_keep",),
    "postgresql": ("DROP TRIGGER attempts_keep ON attempts", "DROP FUNCTION attempts_keep"),
}


def _create(indexes: "tuple[tuple[str, str, list[str], str | None], ...]") -> None:
    for name, table, columns, which in indexes:
        where = None if which is None else sa.text(which)
        op.create_index(name, table, columns, sqlite_where=where, postgresql_where=where)


def upgrade() -> None:
    for name, table, *_ in OLD:
        op.drop_index(name, table)
    _create(NEW)
    for statement in KEEP[op.get_bind().dialect.name]:
        op.execute(statement)


def downgrade() -> None:
    for statement in FORGET[op.get_bind().dialect.name]:
        op.execute(statement)
    for name, table, *_ in NEW:
        op.drop_index(name, table)
    _create(OLD)
