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
