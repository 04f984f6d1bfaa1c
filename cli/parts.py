"""The web, a worker, the migrations: each part alone."""

from __future__ import annotations

import gc
from pathlib import Path

import alembic.util

import migrations
from cli.errors import ExpectedError
from jobs import db
from jobs.progress import Progress
from jobs.settings import Settings


def web(settings: Settings) -> None:
    """Serve the web until a signal stops it."""
    from web.serve import AddressError, serve

    check_auth(settings)
    engine = db.connect(settings.database)
    migrations.check(engine)
    engine.dispose()
    progress = Progress(settings.redis)
    progress.ping()
    progress.close()
    try:
        serve(settings)
    except AddressError as error:
        raise ExpectedError(str(error)) from error


def check_auth(settings: Settings) -> None:
    """Refuse to serve without keys where the settings ask for them."""
    if settings.auth == "required" or (settings.auth == "auto" and not settings.loopback):
        raise ExpectedError(
            f"API keys do not exist yet, so HELIXQ_AUTH={settings.auth} cannot be kept on "
            f"HELIXQ_HOST={settings.host}: listen on 127.0.0.1, or set HELIXQ_AUTH=off behind a "
            "proxy that checks who asks"
        )


def worker(settings: Settings) -> int:
    """Run a worker until a signal stops it; return the exit status."""
    # Importing torch takes seconds, more of them while the collector looks again and again at what
    # has come and stays; the other commands do without.
    gc.disable()
    from worker.checkpoints import CheckpointError
    from worker.main import run

    gc.enable()
    try:
        return run(settings)
    except CheckpointError as error:
        raise ExpectedError(str(error)) from error


def unusable(folder: Path, error: OSError) -> ExpectedError:
    """Make the error of a data folder that cannot be made or written."""
    return ExpectedError(
        f"the data folder {folder} cannot be used ({error.strerror}): check HELIXQ_DATA_DIR"
    )


def migrate(settings: Settings, target: str) -> str | None:
    """Bring the schema to a revision; return it."""
    if settings.database_url is None:
        try:
            settings.data_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unusable(settings.data_dir, error) from error
    engine = db.connect(settings.database)
    try:
        migrations.migrate(engine, target)
        return migrations.current(engine)
    except alembic.util.CommandError as error:
        raise ExpectedError(f"cannot migrate to {target!r}: {error}") from error
    finally:
        engine.dispose()
