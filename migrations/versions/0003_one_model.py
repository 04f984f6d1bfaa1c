"""One model for all stages of a job: the models of workers and jobs, and the runs of jobs"""

import hashlib
import json
from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

JSON = sa.JSON().with_variant(JSONB, "postgresql")

workers = sa.table(
    "workers",
    sa.column("id"),
    sa.column("state"),
    sa.column("runtime", JSON),
    sa.column("model"),
    sa.column("ready_at", sa.DateTime(timezone=True)),
    sa.column("started_at", sa.DateTime(timezone=True)),
)
jobs = sa.table("jobs", sa.column("id"), sa.column("status"), sa.column("model"))
attempts = sa.table(
    "attempts", sa.column("id"), sa.column("job_id"), sa.column("worker_id"), sa.column("status")
)


def upgrade() -> None:
    op.add_column("workers", sa.Column("model", sa.String(64), nullable=False, server_default=""))
    op.add_column("workers", sa.Column("ready_at", sa.DateTime(timezone=True)))
    op.add_column("jobs", sa.Column("model", sa.String(64)))
    op.add_column("jobs", sa.Column("run", sa.Integer, nullable=False, server_default="1"))
    op.add_column("jobs", sa.Column("restarts", JSON, nullable=False, server_default="[]"))
    op.add_column("attempts", sa.Column("run", sa.Integer, nullable=False, server_default="1"))
    _settle(op.get_bind())


def _settle(connection: sa.Connection) -> None:
    """Set the models of stored workers and of jobs in progress.

    A job whose stages had several models gets the model of its last attempt.
    """
    for worker in connection.execute(sa.select(workers.c.id, workers.c.runtime)).all():
        connection.execute(
            sa.update(workers)
            .where(workers.c.id == worker.id)
            .values(model=_digest(worker.runtime or {}))
        )
    connection.execute(
        sa.update(workers).where(workers.c.state != "loading").values(ready_at=workers.c.started_at)
    )
    last = (
        sa.select(workers.c.model)
        .join(attempts, attempts.c.worker_id == workers.c.id)
        .where(attempts.c.job_id == jobs.c.id)
        .order_by(attempts.c.id.desc())
        .limit(1)
    )
    connection.execute(
        sa.update(jobs).where(jobs.c.status == "in_progress").values(model=last.scalar_subquery())
    )


def _digest(runtime: dict[str, Any]) -> str:
    """Return the model of a worker of the previous version, as this version computes it."""
    adapters = runtime.get("adapters", {})
    identity = {
        "base": runtime.get("base", {}).get("digest"),
        "adapters": {role: adapter.get("digest") for role, adapter in adapters.items()},
        "dtype": runtime.get("dtype"),
        "quantization": runtime.get("quantization"),
        "split_special_tokens": False,
        "engine": runtime.get("engine"),
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def downgrade() -> None:
    op.drop_column("attempts", "run")
    for column in ("restarts", "run", "model"):
        op.drop_column("jobs", column)
    for column in ("ready_at", "model"):
        op.drop_column("workers", column)
