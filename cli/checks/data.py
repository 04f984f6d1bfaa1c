"""The data folder."""

from __future__ import annotations

import shutil
import stat

from cli.checks.findings import Findings, error, ok, warning
from jobs.settings import Settings

#: Bytes that should be free where data is written: with less, a warning, or an error.
LOW_SPACE, NO_SPACE = 2 << 30, 200 << 20


def check(settings: Settings) -> Findings:
    """Whether the data folder can be written, by whom, and how much room it has."""
    folder = settings.data_dir
    if not folder.is_dir():
        kind = "is a file" if folder.exists() else "does not exist"
        yield error(f"{folder} {kind}: make the folder, or correct HELIXQ_DATA_DIR")
        return
    mode = stat.S_IMODE(folder.stat().st_mode)
    try:
        probe = folder / ".doctor"
        probe.touch()
        probe.unlink()
    except OSError as problem:
        yield error(f"{folder} cannot be written ({problem.strerror}): change its owner or mode")
        return
    if mode & stat.S_IWOTH:
        yield error(f"everybody may write to {folder} (mode {mode:o}): chmod o-w {folder}")
    elif mode & stat.S_IROTH and settings.database.startswith("sqlite"):
        yield warning(
            f"everybody may read the histories in {folder} (mode {mode:o}): chmod o-rx {folder}"
        )
    else:
        yield ok(f"{folder} can be written")
    free = shutil.disk_usage(folder).free
    space = f"{folder} has {free / (1 << 30):.1f} GiB of free space"
    if free < NO_SPACE:
        yield error(f"{space}: make room, or no job can be stored")
    elif free < LOW_SPACE:
        yield warning(f"{space}: make room, or delete old jobs with HELIXQ_RETENTION_DAYS")
    else:
        yield ok(space)
