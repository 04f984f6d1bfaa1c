"""Alembic's entry: runs the migrations on the connection that `migrations.migrate` opened."""

from alembic import context

from jobs.models import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    # SQLite alters a table by copying it.
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
