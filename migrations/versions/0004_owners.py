"""Jobs that belong to an owner; a stage's index and the lengths of deltas by their names"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

#: The owner of all jobs so far: nobody needed a key.
ANONYMOUS = "anonymous"

#: The trigger of 0002. SQLite drops it with the table that a batch copies.
KEEP = """
    CREATE TRIGGER attempts_keep BEFORE UPDATE ON attempts WHEN OLD.status <> 'running'
    BEGIN SELECT RAISE(ABORT, 'an attempt that has ended never changes'); END
"""


def upgrade() -> None:
    op.drop_index("ix_jobs_created_at_id", "jobs")
    op.add_column(
        "jobs", sa.Column("owner", sa.String(40), nullable=False, server_default=ANONYMOUS)
    )
    with op.batch_alter_table("jobs") as jobs:
        # Whoever adds a job has to name its owner.
        jobs.alter_column("owner", server_default=None)
        jobs.drop_constraint("uq_jobs_idempotency_key", type_="unique")
        jobs.create_unique_constraint("uq_jobs_owner_idempotency_key", ["owner", "idempotency_key"])
    op.create_index("ix_jobs_owner_created_at_id", "jobs", ["owner", "created_at", "id"])
    _rename("jobs", "position", "stage_index")
    _rename("attempts", "position", "stage_index")
    _rename("attempts", "deltas", "delta_lengths")
    _name_unique_attempts("position", "stage_index")


def downgrade() -> None:
    # Before, one key was one job's, whoever chose it.
    jobs = sa.table("jobs", sa.column("owner"), sa.column("idempotency_key"))
    op.execute(sa.update(jobs).where(jobs.c.owner != ANONYMOUS).values(idempotency_key=None))
    op.drop_index("ix_jobs_owner_created_at_id", "jobs")
    with op.batch_alter_table("jobs") as batch:
        batch.drop_constraint("uq_jobs_owner_idempotency_key", type_="unique")
        batch.create_unique_constraint("uq_jobs_idempotency_key", ["idempotency_key"])
        batch.drop_column("owner")
    op.create_index("ix_jobs_created_at_id", "jobs", ["created_at", "id"])
    _rename("jobs", "stage_index", "position")
    _rename("attempts", "stage_index", "position")
    _rename("attempts", "delta_lengths", "deltas")
    _name_unique_attempts("stage_index", "position")


def _rename(table: str, old: str, new: str) -> None:
    op.execute(f"ALTER TABLE {table} RENAME COLUMN {old} TO {new}")


def _name_unique_attempts(old: str, new: str) -> None:
    """Name the constraint on attempts after the column that was renamed from ``old`` to ``new``."""
    with op.batch_alter_table("attempts") as attempts:
        attempts.drop_constraint(f"uq_attempts_job_id_{old}_number", type_="unique")
        attempts.create_unique_constraint(
            f"uq_attempts_job_id_{new}_number", ["job_id", new, "number"]
        )
    if op.get_bind().dialect.name == "sqlite":
        op.execute(KEEP)
