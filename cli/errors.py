"""Errors that a user can fix, as one sentence that says how."""

from __future__ import annotations

import errno
import sqlite3
from pathlib import Path

import click

from cli.plain import printable
from cli.statuses import ExitStatus
from jobs.errors import UserError

#: What the extra `worker` brings.
MODEL_LIBRARIES = ("torch", "transformers", "peft", "safetensors", "tqdm")
#: The errors of a disk, a quota or a limit that has no room left.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class ExpectedError(UserError):
    """A command cannot be carried out; the message is one sentence."""

    status = ExitStatus.FAILED


class UnreachableError(ExpectedError):
    """The server cannot be reached, or responded with a 5xx status; a retry may help."""

    status = ExitStatus.UNREACHABLE


class UnusableModelError(ExpectedError):
    """A worker cannot use its checkpoints, and could not after a restart either."""

    status = ExitStatus.UNUSABLE


def unusable_data_dir(folder: Path, error: OSError) -> ExpectedError:
    """Return the error for a data folder that cannot be created or written."""
    return ExpectedError(
        f"the data folder {folder} cannot be used ({error.strerror}): check HELIXQ_DATA_DIR"
    )


def explain(error: Exception) -> str | None:
    """Return an error as one sentence; None if a user cannot fix it."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, ModuleNotFoundError) and error.name in MODEL_LIBRARIES:
        return f"{error.name} is not installed: pip install 'helixq[worker]'"
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return f"{error.filename or 'the output'} cannot be written ({error.strerror}): make room"
    # Imported here since it is slow, and most commands end without such an error.
    import sqlalchemy as sa
    from redis import RedisError

    from jobs import transient

    reason = transient.reason(error)
    if isinstance(error, sa.exc.SQLAlchemyError):
        return f"the database cannot be used ({reason}): {_advice(error)}"
    if isinstance(error, RedisError):
        if "CERTIFICATE_VERIFY_FAILED" in reason:
            return (
                f"Redis cannot be reached ({reason}): ssl_ca_certs in HELIXQ_REDIS_URL should name the authority that "
                "signed its certificate, and its address there should be one that the certificate has"
            )
        return f"Redis cannot be reached ({reason}): start it, or check HELIXQ_REDIS_URL"
    return None


def _advice(error: Exception) -> str:
    """Return how to fix a database that cannot be used."""
    original = getattr(error, "orig", None)
    if isinstance(original, sqlite3.Error):
        code = getattr(original, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_READONLY:
            return "the file and its folder must be writable"
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return "another program has locked it: wait until it ends, or stop it"
        return "check HELIXQ_DATA_DIR and HELIXQ_DATABASE_URL"
    return {
        "25006": "name the primary in HELIXQ_DATABASE_URL, or make the database writable",
        "42501": "grant the role the missing permission, or make it the database's owner",
        "3F000": "create the schema that the role's search_path names",
    }.get(str(getattr(original, "sqlstate", None)), "start it, or check HELIXQ_DATABASE_URL")


def fail(message: str, status: ExitStatus = ExitStatus.FAILED) -> click.ClickException:
    """Return the exception that ends a command: it prints one sentence.

    Args:
        message: what is wrong, and how to fix it.
        status: the exit status.
    """
    text = printable(message.strip())  # A server, or a file, may have worded a part of it.
    # click has the exit status in the class.
    kind: type[click.ClickException] = type(
        "Failure", (click.ClickException,), {"exit_code": status}
    )
    return kind(text if text.endswith((".", "?", "`")) else f"{text}.")
