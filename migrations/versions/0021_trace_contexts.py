"""Which trace a job belongs to, and which server ran an attempt.

Revision ID: 0021
Revises: 0020
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None

#: What the trigger says.
SAYS = "an attempt that has ended never changes"
ENDED = "OLD.status <> 'running'"


def upgrade() -> None:
    """Add the columns. The server of an attempt that has ended never changes, like the rest of it."""
    op.add_column("jobs", sa.Column("traceparent", sa.String(55)))
    op.add_column("jobs", sa.Column("tracestate", sa.String(512)))
    op.add_column("attempts", sa.Column("server", sa.Text))
    if op.get_bind().dialect.name == "sqlite":
        op.execute(
            "CREATE TRIGGER attempts_keep_server BEFORE UPDATE OF server ON attempts "
            f"WHEN {ENDED} AND NEW.server IS NOT OLD.server "
            f"BEGIN SELECT RAISE(ABORT, '{SAYS}'); END"
        )
        return
    op.execute(
        "CREATE FUNCTION attempts_keep_server() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        f"RAISE EXCEPTION '{SAYS}' USING ERRCODE = 'integrity_constraint_violation'; END $$"
    )
    op.execute(
        "CREATE TRIGGER attempts_keep_server BEFORE UPDATE OF server ON attempts FOR EACH ROW "
        f"WHEN ({ENDED} AND NEW.server IS DISTINCT FROM OLD.server) "
        "EXECUTE FUNCTION attempts_keep_server()"
    )


def downgrade() -> None:
    """Remove the columns."""
    if op.get_bind().dialect.name == "sqlite":
        op.execute("DROP TRIGGER attempts_keep_server")
    else:
        op.execute("DROP TRIGGER attempts_keep_server ON attempts")
        op.execute("DROP FUNCTION attempts_keep_server")
    op.drop_column("attempts", "server")
    op.drop_column("jobs", "tracestate")
    op.drop_column("jobs", "traceparent")
