"""The key of the transparency log."""

from __future__ import annotations

from cli.checks.findings import Findings, error, ok, warning
from cli.database import open_database
from jobs.errors import LogKeyError
from jobs.settings import Settings
from jobs.statements import log
from jobs.use_cases import log_signing
from jobs.use_cases.log_signing import Signing


def check(settings: Settings) -> Findings:
    """Whether this machine's settings can sign the transparency log."""
    signing = Signing.of(settings.log_key, settings.log_origin, settings.data_dir)
    with open_database(settings) as db:
        with db.read() as connection:
            origin, size = log.state(connection)
            known = {row.verifier for row in log.keys(connection)}
        try:
            log_signing.check_signing(db, signing)
        except LogKeyError as problem:
            yield error(str(problem))
            return
    if origin is None:
        yield ok("the transparency log is empty")
    elif signing.key is None:
        yield ok(f"{origin} has {size} entries, and the database has its key")
    elif str(signing.key.verifier) not in known:
        yield warning("HELIXQ_LOG_KEY is new: the next entry is signed with it, for good")
    else:
        yield ok(f"{origin} has {size} entries, and HELIXQ_LOG_KEY signs it")
