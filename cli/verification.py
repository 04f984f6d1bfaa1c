"""What `helixq jobs verify` checks, and what it says."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from cli.errors import ExpectedError
from cli.files import open_file
from cli.tables import count
from jobs.errors import TamperedError
from jobs.formats.compression import BrokenFileError
from jobs.importer import read_histories
from jobs.protocol.body import RepeatedNameError, loads
from jobs.times import rfc3339
from jobs.tlog.cosignature import Cosigner, require
from jobs.tlog.entry import parse_entry, recorded_as
from jobs.tlog.note import NoteError, Verifier
from jobs.tlog.proof import HEADER, Proof
from jobs.tlog.record import texts
from jobs.tlog.salted import is_erased
from jobs.use_cases import verifying
from jobs.use_cases.importing import ImportRefusedError


def verify_proof(
    file: Path, trusted: list[Verifier], witnesses: list[Cosigner], history_file: Path | None
) -> dict[str, Any]:
    """Check a proof, and a history against it.

    Raises:
        NoteError, ProofError: the proof is wrong, or lacks a cosignature of a witness.
        TamperedError: the history is not the one that the entry has the digest of.
    """
    proof = Proof.parse(read(file))
    if proof.extra is None:
        raise NoteError("the proof has no entry in its `extra` line, so it is not one of HelixQ's")
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
            history = loads(read(history_file).encode(), unique_names=True)
            name = recorded_as(history, entry)
            erased = [pointer for pointer, text in texts(history).items() if is_erased(text)]
        except RepeatedNameError as error:
            raise TamperedError(f"{history_file}: {error}") from error
        except (AttributeError, ValueError, KeyError, TypeError) as error:
            raise TamperedError(
                f"{history_file} is not the complete history of a job with an entry in the log; if it was saved as soon "
                "as the job had ended, save it again"
            ) from error
        if name is None:
            raise TamperedError(
                f"the history of {history['id']} is not the one that was recorded in entry {proof.index}"
            )
        result |= {"job": history["id"], "record": name, "erased": erased}
    return result


def is_proof(file: Path) -> bool:
    """Return whether a file is a proof, and not an export."""
    with open_file(file) as opened:
        return opened.read(len(HEADER)) == HEADER.encode()


def verify_export(file: Path, trusted: list[Verifier], witnesses: list[Cosigner]) -> dict[str, Any]:
    """Check an export of histories, each with its proof.

    Raises:
        ImportRefusedError: one of them is not as it was recorded, or its proof lacks a cosignature of a witness.
        BrokenFileError: the file is not whole, or holds no history.
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
                    raise ImportRefusedError(
                        line.number, f"{line.history['id']}: {error}"
                    ) from error
                verified += 1
                logs.add(line.checked.proof.log)
                of_others += not line.checked.origin_signed
                erased += bool(line.checked.erased)
                unproved += line.checked.unproved
    # A download that failed leaves an empty file, and nothing in it is as it was recorded.
    if not verified + without_entry:
        raise BrokenFileError("the file holds no history")
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
        name: rfc3339(dt.datetime.fromtimestamp(time, dt.UTC), "seconds")
        for name, time in witnessed.items()
    }


def _cosigned(result: Mapping[str, Any]) -> str:
    """Return the sentence on who cosigned a checkpoint, and when."""
    by = ", ".join(f"{name} at {time}" for name, time in result["witnesses"].items())
    return f" Cosigned by {by}." if by else ""


def all_proved(result: Mapping[str, Any]) -> str:
    """Return what `verify_export` has found, as sentences."""
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


def proved(result: Mapping[str, Any]) -> str:
    """Return what `verify_proof` has found, as sentences."""
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


def as_recorded(report: verifying.Report) -> str:
    """Return what was found in the database, as sentences."""
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


def read(file: Path) -> str:
    """Return the text of a file.

    Raises:
        ExpectedError: it cannot be read, or is not UTF-8.
    """
    try:
        return file.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise ExpectedError(f"{file} is not UTF-8") from error
    except OSError as error:
        raise ExpectedError(f"{file} cannot be read ({error.strerror})") from error
