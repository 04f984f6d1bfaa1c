"""Migrations go up and down, and match the models."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

import migrations
from jobs import db
from jobs.models import Base


@pytest.fixture
def engine(database_url: str) -> sa.Engine:
    return db.connect(database_url)


def test_the_migrations_match_the_models(engine: sa.Engine) -> None:
    migrations.migrate(engine)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []
        wanted = {
            (table.name, constraint.name)
            for table in Base.metadata.tables.values()
            for constraint in table.constraints
            if isinstance(constraint, sa.CheckConstraint)
        }
        inspector = sa.inspect(connection)
        found = {
            (table, check["name"])
            for table in Base.metadata.tables
            for check in inspector.get_check_constraints(table)
        }
        assert found == wanted  # alembic compares no checks
    engine.dispose()


def test_migrations_go_up_and_down(engine: sa.Engine) -> None:
    assert migrations.current(engine) is None
    migrations.migrate(engine)
    assert migrations.current(engine) == migrations.head()
    migrations.check(engine)
    migrations.migrate(engine)  # again: nothing to do
    migrations.migrate(engine, "base")
    assert migrations.current(engine) is None
    assert set(sa.inspect(engine).get_table_names()) == {"alembic_version"}
    migrations.migrate(engine)
    assert set(sa.inspect(engine).get_table_names()) == {"alembic_version", *Base.metadata.tables}
    engine.dispose()


def test_a_database_without_schema_is_refused(engine: sa.Engine) -> None:
    with pytest.raises(migrations.SchemaError, match=r"missing.*helixq migrate"):
        migrations.check(engine)
    engine.dispose()


def test_several_may_open_a_new_database_at_once(tmp_path: Path) -> None:
    """SQLite does not wait by itself there: one of 80 failed."""
    with ThreadPoolExecutor(4) as pool:
        for number in range(50):
            url = f"sqlite:///{tmp_path / str(number)}"
            engines = [db.connect(url) for _ in range(4)]
            list(pool.map(lambda engine: engine.connect().close(), engines))
            for engine in engines:
                engine.dispose()


def test_two_may_migrate_at_once(database_url: str) -> None:
    engines = [db.connect(database_url) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(migrations.migrate, engines))
    migrations.check(engines[0])
    for engine in engines:
        engine.dispose()
