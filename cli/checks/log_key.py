"""The key of the transparency log."""

from __future__ import annotations

from cli.checks.findings import Findings, error, ok, warning
from cli.database import open_database
from jobs.errors import LogKeyError
from jobs.kept_checkpoint import KeptCheckpoint
from jobs.settings import Settings
from jobs.statements import log
from jobs.tlog.note import Signer
from jobs.use_cases import sealing


def check(settings: Settings) -> Findings:
    """Whether this machine's settings can sign the transparency log."""
    kept = KeptCheckpoint(settings.data_dir)
    with open_database(settings) as db:
        with db.read() as connection:
            origin, size = log.state(connection)
            known = log.keys(connection)
        try:
            sealing.require_continued(db, kept)
        except LogKeyError as problem:
            yield error(str(problem))
            return
    if origin is None:
        yield ok("the transparency log is empty")
        return
    if settings.log_origin not in (None, origin):
        yield error(
            f"HELIXQ_LOG_ORIGIN is {settings.log_origin}, and the log is {origin} for good: unset it"
        )
        return
    if settings.log_key is None:
        if known and known[-1].private is None:
            yield error(
                "the log is signed with a HELIXQ_LOG_KEY, which is not set here: set it where workers run, "
                "or `helixq maintain`"
            )
        else:
            yield ok(f"{origin} has {size} entries, and the database has its key")
        return
    signer = Signer.parse(settings.log_key)
    verifiers = [row.verifier for row in known]
    if signer.name != origin:
        yield error(
            f"HELIXQ_LOG_KEY is a key of {signer.name}, and the log is {origin}: set its key"
        )
    elif str(signer.verifier) in verifiers[:-1]:
        yield error("HELIXQ_LOG_KEY is an old key of the log: set the newest")
    elif str(signer.verifier) not in verifiers:
        yield warning("HELIXQ_LOG_KEY is new: the next entry is signed with it, for good")
    else:
        yield ok(f"{origin} has {size} entries, and HELIXQ_LOG_KEY signs it")
