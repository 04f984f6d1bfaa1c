"""The proofs that imported reviews and erasures came with.

Revision ID: 0020
Revises: 0019
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None

#: The tables, and what their triggers say.
SAYS = {"reviews": "a review never changes", "erasures": "an erasure never changes"}


def upgrade() -> None:
    """Add the columns, which never change."""
    dialect = op.get_bind().dialect.name
    for table, says in SAYS.items():
        name = f"{table}_keep_origin"
        op.add_column(table, sa.Column("origin_proof", sa.Text))
        if dialect == "sqlite":
            op.execute(
                f"CREATE TRIGGER {name} BEFORE UPDATE OF origin_proof ON {table} "
                "WHEN NEW.origin_proof IS NOT OLD.origin_proof "
                f"BEGIN SELECT RAISE(ABORT, '{says}'); END"
            )
            continue
        op.execute(
            f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            f"RAISE EXCEPTION '{says}' USING ERRCODE = 'integrity_constraint_violation'; END $$"
        )
        op.execute(
            f"CREATE TRIGGER {name} BEFORE UPDATE OF origin_proof ON {table} FOR EACH ROW "
            f"WHEN (NEW.origin_proof IS DISTINCT FROM OLD.origin_proof) EXECUTE FUNCTION {name}()"
        )


def downgrade() -> None:
    """Remove the columns. An older program verifies the entries, and does not know the proofs that they name."""
    dialect = op.get_bind().dialect.name
    for table in SAYS:
        name = f"{table}_keep_origin"
        if dialect == "sqlite":
            op.execute(f"DROP TRIGGER {name}")
        else:
            op.execute(f"DROP TRIGGER {name} ON {table}")
            op.execute(f"DROP FUNCTION {name}")
        op.drop_column(table, "origin_proof")
