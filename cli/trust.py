"""`helixq jobs verify`, `log-key` and `new-log`: the transparency log.

What uses the database is imported by the commands themselves: that takes half a second, which their help and
completion do without.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.errors import ExpectedError
from cli.fields import Command, Fields, json_fields
from cli.log_keys import log_keys, witnesses
from cli.plain import say
from jobs.tlog.cosignature import Cosigner
from jobs.tlog.note import NoteError, Signer, Verifier, is_name

if TYPE_CHECKING:
    from jobs.settings import Settings

#: Those of a proof, of an export and of the database together.
VERIFY_FIELDS = (
    "verified",
    "error",
    "origin",
    "size",
    "witnesses",
    "index",
    "entry",
    "job",
    "record",
    "erased",
    "histories",
    "logs",
    "without_entry",
    "unchecked_origins",
    "unproved",
    "entries",
    "jobs",
    "retried",
    "deleted",
    "checkpoints",
    "reviews",
    "erasures",
    "unsealed",
    "witnessed",
)
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command(cls=Command)
@click.argument("file", metavar="[FILE]", type=FILE, required=False)
@log_keys
@witnesses
@click.option(
    "--history",
    "history_file",
    type=FILE,
    help="Also check this history, as `helixq jobs show --json` prints it.",
)
@click.option(
    "--checkpoint",
    "checkpoint_files",
    type=FILE,
    multiple=True,
    help="An earlier checkpoint that the database's log must continue; may be repeated.",
)
@json_fields(VERIFY_FIELDS)
@click.pass_obj
def verify(
    settings: Settings,
    /,
    file: Path | None,
    keys: list[Verifier],
    witnesses: list[Cosigner],
    history_file: Path | None,
    checkpoint_files: tuple[Path, ...],
    fields: Fields | None,
) -> None:
    """Check that nothing that was recorded has changed; the exit status is 1 if something has.

    FILE is a proof, or an export of histories, each of which is checked with its proof, without a server or a
    database. Without FILE, check the database: every job against its entry in the log, and the log against its
    checkpoints.
    """
    from jobs.errors import TamperedError
    from jobs.formats.compression import BrokenFileError
    from jobs.tlog.merkle import ProofError
    from jobs.use_cases.importing import ImportRefusedError

    if file is not None and (not keys or checkpoint_files):
        raise click.UsageError("FILE needs --key, and takes no --checkpoint.")
    try:
        result, sentence = _verified(
            settings, file, keys, witnesses, history_file, checkpoint_files
        )
    except (
        TamperedError,
        NoteError,
        ProofError,
        ImportRefusedError,
        BrokenFileError,
    ) as error:
        if fields:
            fields.print({"verified": False, "error": str(error)}, lines=True)
        else:
            say(f"NOT VERIFIED: {error}.", err=True)
        sys.exit(1)
    if fields:
        fields.print(result, lines=True)
    else:
        say(sentence)


def _verified(
    settings: Settings,
    file: Path | None,
    trusted: list[Verifier],
    witnesses: list[Cosigner],
    history_file: Path | None,
    checkpoint_files: tuple[Path, ...],
) -> tuple[dict[str, Any], str]:
    """Check a proof, an export or the database; return what was found as fields, and as a sentence."""
    from cli import verification
    from cli.database import open_database
    from jobs.protocol.history import history as describe
    from jobs.use_cases import verifying

    if file is not None and verification.is_proof(file):
        result = verification.verify_proof(file, trusted, witnesses, history_file)
        return result, verification.proved(result)
    if history_file is not None:
        raise click.UsageError("--history needs the proof of the history.")
    if file is not None:
        result = verification.verify_export(file, trusted, witnesses)
        return result, verification.all_proved(result)
    earlier = [(str(each), verification.read(each)) for each in checkpoint_files]
    with open_database(settings) as database:
        report = verifying.verify(
            database, describe, trusted=trusted, witnesses=witnesses, checkpoints=earlier
        )
    return {"verified": True, **vars(report)}, verification.as_recorded(report)


@click.command("log-key", cls=Command)
@click.option("--rotate", is_flag=True, help="Make a new key first, which the database keeps.")
@click.option(
    "--new", "origin", metavar="ORIGIN", help="Print a new private key for HELIXQ_LOG_KEY instead."
)
@json_fields(("public_key", "private_key"))
@click.pass_obj
def log_key(settings: Settings, /, rotate: bool, origin: str | None, fields: Fields | None) -> None:
    """Print the public keys of the transparency log, the newest first."""
    if origin is not None:
        if rotate:
            raise click.UsageError("Give either --rotate or --new.")
        if not is_name(origin):
            raise click.UsageError("ORIGIN should be a name such as example.com/log.")
        signer = Signer.generate(origin)
        if fields:
            made = {"public_key": str(signer.verifier), "private_key": signer.to_text()}
            fields.print(made, lines=True)
            return
        click.echo(f"The public key is {signer.verifier}", err=True)
        click.echo(signer.to_text())
        return
    from cli.database import open_database
    from jobs.use_cases import log_signing, proving

    with open_database(settings) as database:
        if rotate:
            log_signing.rotate_key(database)
        keys = proving.list_keys(database)
    if not keys:
        raise ExpectedError("the log has no key yet: it gets one when the first job has ended")
    if fields:
        fields.print_each({"public_key": str(key)} for key in reversed(keys))
        return
    for key in reversed(keys):
        click.echo(str(key))


@click.command("new-log", cls=Command)
@json_fields(("public_key",))
@click.pass_obj
def new_log(settings: Settings, /, fields: Fields | None) -> None:
    """Continue the transparency log under a new name, after an older backup was restored.

    All entries stay, and get a new key and a new checkpoint. HELIXQ_LOG_ORIGIN or HELIXQ_LOG_KEY, if set, give the new
    name. The new public key is printed.
    """
    from cli.database import open_database
    from jobs.use_cases import log_signing

    signing = log_signing.Signing.of(settings.log_key, settings.log_origin)
    with open_database(settings) as database:
        key = log_signing.begin_new_log(database, signing)
    if fields:
        fields.print({"public_key": str(key)}, lines=True)
    else:
        click.echo(str(key))
