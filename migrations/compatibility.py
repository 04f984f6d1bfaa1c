"""Which versions of the program run on a schema: that of its revision, and older ones if the migrations since allow them.

A program does not know the migrations after its own revision. So each migration names the oldest compatible revision
(`compatible_from`), and the database stores the compatible revisions in a table, where older programs find them.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic.script import ScriptDirectory

_revisions = sa.table("compatible_revisions", sa.column("revision", sa.String))


def write(connection: sa.Connection, scripts: ScriptDirectory, revision: str | None) -> None:
    """Store the revisions whose programs run on the schema, in place of those that were stored before.

    Args:
        connection: in a transaction that writes.
        scripts: the migrations.
        revision: of the schema; None for an empty database.
    """
    if revision is None or not _is_kept(connection):
        return
    connection.execute(sa.delete(_revisions))
    rows = [{"revision": each} for each in _compatible(scripts, revision)]
    connection.execute(sa.insert(_revisions), rows)


def suits(connection: sa.Connection, revision: str) -> bool:
    """Return whether the programs of a revision run on the schema of a database that a newer one has migrated."""
    query = sa.select(sa.literal(1)).where(_revisions.c.revision == revision)
    return _is_kept(connection) and connection.scalar(query.select_from(_revisions)) is not None


def _is_kept(connection: sa.Connection) -> bool:
    """Return whether there is the table, which older schemas do not have."""
    return sa.inspect(connection).has_table(_revisions.name)


def _compatible(scripts: ScriptDirectory, revision: str) -> list[str]:
    """Return the revisions whose programs run on a revision's schema, its own among them."""
    script = scripts.get_revision(revision)
    oldest = getattr(script.module, "compatible_from", revision)
    found = []
    for each in scripts.iterate_revisions(revision, "base"):
        found.append(each.revision)
        if each.revision == oldest:
            return found
    raise ValueError(
        f"the migration {revision} has compatible_from = {oldest!r}, which is no revision before it"
    )
