"""`helixq migrate`."""

from __future__ import annotations

import json
from pathlib import Path

import migrations
from jobs.database import Database
from tests import servers


def test_it_says_which_revision_the_schema_has(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'jobs.sqlite3'}"
    environ = {"HELIXQ_DATABASE_URL": url, "HELIXQ_DATA_DIR": str(tmp_path)}
    said = []
    for options in (["--json"], []):
        migrate = servers.forked("migrate", *options, environ=environ)
        assert migrate.wait() == 0, migrate.output
        said.append(migrate.output.splitlines()[-1])  # The log comes before it.

    revision = json.loads(said[0])["revision"]
    assert said[1] == f"The database schema is at revision {revision}."
    database = Database(url)
    migrations.check(database.engine)
    database.close()


def test_it_asks_before_it_drops_all_tables(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'jobs.sqlite3'}"
    environ = {"HELIXQ_DATABASE_URL": url, "HELIXQ_DATA_DIR": str(tmp_path)}
    database = Database(url)
    migrations.migrate(database.engine)
    # Nobody answers: the standard input of the program is empty.
    unanswered = servers.forked("migrate", "--to", "base", environ=environ)
    assert unanswered.wait() == 1
    assert "Drop all tables with all jobs and API keys?" in unanswered.output
    migrations.check(database.engine)

    answered = servers.forked("migrate", "--to", "base", "--yes", environ=environ)
    assert answered.wait() == 0, answered.output
    assert migrations.current(database.engine) is None
    database.close()
