"""A real PgBouncer in front of a PostgreSQL."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa

from tests.servers import PATIENCE, start

PORT = 6432
#: Server connections for all clients: fewer than clients, so that they are reassigned constantly.
POOL = 3
CONFIGURATION = """
[databases]
* = host={server} port=5432
[pgbouncer]
listen_addr =
unix_socket_dir = {folder}
listen_port = {port}
auth_type = trust
auth_file = {folder}/users
pool_mode = {mode}
default_pool_size = {pool}
"""


class Pooler:
    """A PgBouncer that runs."""

    def __init__(self, folder: Path, url: str, mode: str = "transaction") -> None:
        """Start it; skip the test where it is not installed.

        Args:
            folder: one with a short path, which does not exist.
            url: of a database whose server listens on a Unix socket.
            mode: when a server connection goes back to the pool.
        """
        program = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
        if program is None:
            if os.environ.get("REQUIRE_PGBOUNCER"):
                pytest.fail("no pgbouncer is installed")
            pytest.skip("no pgbouncer is installed")
        near = sa.make_url(url)
        folder.mkdir()
        (folder / "users").write_text(f'"{near.username}" ""\n')
        configuration = CONFIGURATION.format(
            server=near.query["host"], folder=folder, port=PORT, mode=mode, pool=POOL
        )
        (folder / "pgbouncer.ini").write_text(configuration)
        self._command = [program, str(folder / "pgbouncer.ini")]
        if os.getuid() == 0:  # both refuse to run as root
            user = (Path(str(near.query["host"])) / ".s.PGSQL.5432").owner()
            self._command.append(f"--user={user}")
            shutil.chown(folder, user)
            folder.parent.chmod(0o711)  # Otherwise that user does not reach it.
        self._far = near.set(query={"host": str(folder), "port": str(PORT)})
        #: The database's URL through it.
        self.url = self._far.render_as_string(hide_password=False)
        self.start()

    def start(self) -> None:
        """Start it, after it has ended."""
        self.process = start(self._command, os.environ)
        try:
            self.process.wait_for("process up")
            _until_it_answers(self._far)
        except BaseException:
            self.process.stop()
            raise


@contextmanager
def pgbouncer(folder: Path, url: str, mode: str = "transaction") -> Iterator[str]:
    """Run a `Pooler`; return the database's URL through it."""
    pooler = Pooler(folder, url, mode)
    try:
        yield pooler.url
    finally:
        pooler.process.stop()


def _until_it_answers(url: sa.URL) -> None:
    libpq = url.set(drivername="postgresql").render_as_string(hide_password=False)
    give_up = time.monotonic() + PATIENCE
    while True:
        try:
            return psycopg.connect(libpq).close()
        except psycopg.OperationalError:
            if time.monotonic() > give_up:
                raise
            time.sleep(0.05)  # it reports that it is up before it listens
