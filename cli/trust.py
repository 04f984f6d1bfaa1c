"""`helixq jobs proof`, `verify` and `log-key`: the transparency log."""

from __future__ import annotations

import datetime as dt
import json
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import click

from cli.client import Client
from cli.errors import ExpectedError
from cli.exports import open_file
from cli.listing import count, open_database
from cli.options import log_keys, server, witnesses
from jobs.formats.compression import BrokenFileError
from jobs.importer import read_histories
from jobs.protocol.history import history as describe
from jobs.settings import Settings
from jobs.tlog.cosignature import Cosigner, require
from jobs.tlog.entry import is_erased, parse_entry, recorded_as, texts
from jobs.tlog.merkle import ProofError
from jobs.tlog.note import NoteError, Signer, Verifier, is_name
from jobs.tlog.proof import HEADER, Proof
from jobs.use_cases import proving, sealing, verifying
from jobs.use_cases.importing import RefusedError

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument("job_id", metavar="ID")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    help="Write it to this file.",
)
@click.option("--origin", is_flag=True, help="The proof that an imported job came with.")
@click.option(
    "--review", type=click.IntRange(min=0), metavar="NUMBER", help="The proof of this review."
)
@click.option(
    "--erasure", type=click.IntRange(min=0), metavar="NUMBER", help="The proof of this erasure."
)
@server
@click.pass_obj
def proof(
    settings: Settings,
    /,
    job_id: str,
    output: Path | None,
    origin: bool,
    url: str | None,
    **parts: int | None,
) -> None:
    """Print the proof that a job is in the transparency log: a C2SP tlog-proof file.

    Reviews and erasures have proofs of their own, and are counted from 0 on, as in the job's history.
    """
    parameters = {name: str(number) for name, number in parts.items() if number is not None}
    if origin:
        parameters["origin"] = "true"
    if len(parameters) > 1:
        raise click.UsageError("Give one of --origin, --review and --erasure.")
    with Client(url or settings.url, settings.api_key) as client:
        text = client.proof(job_id, **parameters)
    if output is None:
        click.echo(text, nl=False)
        return
    try:
        output.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise ExpectedError(f"{output} cannot be written ({error.strerror})") from error


@click.command()
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
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.pass_obj
def verify(
    settings: Settings,
    /,
    file: Path | None,
    keys: list[Verifier],
    witnesses: list[Cosigner],
    history_file: Path | None,
    checkpoint_files: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Check that nothing that was recorded has changed; the exit status is 1 if something has.

    FILE is a proof, or an export of histories, each of which is checked with its proof, without a server or a
    database. Without FILE, check the database: every job against its entry in the log, and the log against its
    checkpoints.
    """
    trusted = keys
    try:
        if file is not None and (not trusted or checkpoint_files):
            raise click.UsageError("FILE needs --key, and takes no --checkpoint.")
        if file is not None and _is_proof(file):
            result = _verify_proof(file, trusted, witnesses, history_file)
            sentence = _proved(result)
        elif file is not None:
            if history_file is not None:
                raise click.UsageError("--history needs the proof of the history.")
            result = _verify_export(file, trusted, witnesses)
            sentence = _all_proved(result)
        else:
            if history_file is not None:
                raise click.UsageError("--history needs the proof of the history.")
            earlier = [(str(file), _read(file)) for file in checkpoint_files]
            with open_database(settings) as database:
                report = verifying.verify(
                    database, describe, trusted=trusted, witnesses=witnesses, checkpoints=earlier
                )
            result = {"verified": True, **vars(report)}
            sentence = _as_recorded(report)
    except (
        verifying.TamperedError,
        NoteError,
        ProofError,
        RefusedError,
        BrokenFileError,
    ) as error:
        if as_json:
            click.echo(json.dumps({"verified": False, "error": str(error)}))
        else:
            click.echo(f"NOT VERIFIED: {error}.", err=True)
        sys.exit(1)
    click.echo(json.dumps(result) if as_json else sentence)


@click.command("log-key")
@click.option("--rotate", is_flag=True, help="Make a new key first, which the database keeps.")
@click.option(
    "--new", "origin", metavar="ORIGIN", help="Print a new private key for HELIXQ_LOG_KEY instead."
)
@click.pass_obj
def log_key(settings: Settings, /, rotate: bool, origin: str | None) -> None:
    """Print the public keys of the transparency log, the newest first."""
    if origin is not None:
        if rotate:
            raise click.UsageError("Give either --rotate or --new.")
        if not is_name(origin):
            raise click.UsageError("ORIGIN should be a name such as example.com/log.")
        signer = Signer.generate(origin)
        click.echo(f"The public key is {signer.verifier}", err=True)
        click.echo(signer.to_text())
        return
    with open_database(settings) as database:
        if rotate:
            sealing.rotate_key(database)
        keys = proving.list_keys(database)
    if not keys:
        raise ExpectedError("the log has no key yet: it gets one when the first job has ended")
    for key in reversed(keys):
        click.echo(str(key))


def _verify_proof(
    file: Path, trusted: list[Verifier], witnesses: list[Cosigner], history_file: Path | None
) -> dict[str, Any]:
    """Check a proof, and a history against it.

    Raises:
        NoteError, ProofError: the proof is wrong, or lacks a cosignature of a witness.
        TamperedError: the history is not the one that the entry has the digest of.
    """
    proof = Proof.parse(_read(file))
    if proof.extra is None:
        raise NoteError("the proof has no entry in its `extra` line, so it is none of HelixQ's")
    checkpoint = proof.verify(proof.extra, trusted)
    entry = parse_entry(proof.extra)
    result = {
        "verified": True,
        "origin": checkpoint.origin,
        "size": checkpoint.size,
        "witnesses": _times(require(proof.checkpoint, witnesses)),
        "index": proof.index,
        "entry": entry,
    }
    if history_file is not None:
        try:
            told = json.loads(_read(history_file))
            name = recorded_as(told, entry)
            erased = [pointer for pointer, text in texts(told).items() if is_erased(text)]
        except (AttributeError, ValueError, KeyError, TypeError) as error:
            raise verifying.TamperedError(
                f"{history_file} is no whole history of a job that is in the log"
            ) from error
        if name is None:
            raise verifying.TamperedError(
                f"the history of {told['id']} is not the one that was recorded in entry {proof.index}"
            )
        result |= {"job": told["id"], "record": name, "erased": erased}
    return result


def _is_proof(file: Path) -> bool:
    with open_file(file) as opened:
        return opened.read(len(HEADER)) == HEADER.encode()


def _verify_export(
    file: Path, trusted: list[Verifier], witnesses: list[Cosigner]
) -> dict[str, Any]:
    """Check an export of histories, each with its proof.

    Raises:
        RefusedError: one of them is not as it was recorded, or its proof lacks a cosignature of a witness.
        BrokenFileError: the file is not whole.
    """
    verified = without_entry = of_others = erased = unproved = 0
    logs = set()
    is_witnessed = cache(lambda note: require(note, witnesses))
    with open_file(file) as opened:
        for line in read_histories(opened, trusted):
            if line.checked is None:
                without_entry += 1
            else:
                try:
                    is_witnessed(line.checked.proof.checkpoint)
                except NoteError as error:
                    raise RefusedError(line.number, f"{line.history['id']}: {error}") from error
                verified += 1
                logs.add(line.checked.proof.log)
                of_others += not line.checked.origin_signed
                erased += bool(line.checked.erased)
                unproved += line.checked.unproved
    return {
        "verified": True,
        "histories": verified,
        "logs": sorted(logs),
        "without_entry": without_entry,
        # Those with texts that were erased, which cannot be checked.
        "erased": erased,
        # Imported there from logs whose keys were not given.
        "unchecked_origins": of_others,
        # Reviews and erasures without a proof.
        "unproved": unproved,
    }


def _times(witnessed: Mapping[str, int]) -> dict[str, str]:
    """Return the times of cosignatures as RFC 3339 in UTC."""
    return {
        name: dt.datetime.fromtimestamp(time, dt.UTC).isoformat().replace("+00:00", "Z")
        for name, time in witnessed.items()
    }


def _cosigned(result: Mapping[str, Any]) -> str:
    """Return the sentence on who cosigned a checkpoint, and when."""
    by = ", ".join(f"{name} at {time}" for name, time in result["witnesses"].items())
    return f" Cosigned by {by}." if by else ""


def _all_proved(result: Mapping[str, Any]) -> str:
    number = result["histories"]
    verb = "is as it was" if number == 1 else "are as they were"
    said = f"Verified: {count(number, 'history', 'histories')} {verb} recorded"
    if result["logs"]:
        said += f" in {', '.join(result['logs'])}"
    said += "."
    if without := result["without_entry"]:
        said += (
            f" {count(without, 'history', 'histories')} had no entry yet, and cannot be checked."
        )
    if erased := result["erased"]:
        said += (
            f" Texts of {count(erased, 'history', 'histories')} were erased, and are not checked."
        )
    if unproved := result["unproved"]:
        said += f" {count(unproved, 'review or erasure', 'reviews and erasures')} had no proof."
    if unchecked := result["unchecked_origins"]:
        said += (
            f" {count(unchecked, 'history', 'histories')} came from logs whose keys were not given."
        )
    return said


def _proved(result: Mapping[str, Any]) -> str:
    at, digest = result["entry"].get("at"), result["entry"].get("digest")
    place = f"entry {result['index']} of {result['origin']}"
    recorded = f"recorded at {at} with {result['size']} entries signed"
    if "job" in result:
        without = ""
        if result["erased"]:
            without = (
                f" These texts were erased, and are not checked: {', '.join(result['erased'])}."
            )
        said = (
            f"Verified: the {result['record']} of {result['job']} is {place}, {recorded}.{without}"
        )
    else:
        said = f"Verified: the record with the digest {digest} is {place}, {recorded}."
    return f"{said}{_cosigned(result)}"


def _as_recorded(report: verifying.Report) -> str:
    waiting = ""
    if report.unsealed:
        verb = "is" if report.unsealed == 1 else "are"
        waiting = f" {count(report.unsealed, 'ended job')} {verb} not in it yet."
    if not report.entries:
        return f"The log is empty.{waiting}"
    verbs = "is as it was" if report.jobs == 1 else "are as they were"
    added = [
        count(number, name)
        for number, name in ((report.reviews, "review"), (report.erasures, "erasure"))
        if number
    ]
    retried = f"{report.retried} retried after an end, " if report.retried else ""
    witnessed = "".join(
        f" {name} has cosigned {size} of them." for name, size in report.witnessed.items()
    )
    besides = f" with {' and '.join(added)}" if added else ""
    return (
        f"Verified: {count(report.jobs, 'job')}{besides} {verbs} recorded in {report.origin}, "
        f"{retried}{report.deleted} deleted; {count(report.checkpoints, 'checkpoint')} on {report.entries} entries "
        f"agree{'s' if report.checkpoints == 1 else ''}.{witnessed}{waiting}"
    )


def _read(file: Path) -> str:
    try:
        return file.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise ExpectedError(f"{file} is not UTF-8") from error
    except OSError as error:
        raise ExpectedError(f"{file} cannot be read ({error.strerror})") from error
