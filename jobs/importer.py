"""Reading files of exported histories: for `helixq jobs import`, and for `helixq jobs verify`.

A file is read a line at a time, and each line is checked by itself. Lines become rows a batch at a time, each of
them one transaction.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

from jobs.database import Database
from jobs.formats.compression import decompressed
from jobs.jsonl import read_lines
from jobs.models import OPEN, Job
from jobs.protocol.body import RepeatedNameError, loads
from jobs.protocol.restoring import disagreement, restore
from jobs.tlog import exported
from jobs.tlog.exported import Checked, HistoryError
from jobs.tlog.note import Verifier
from jobs.use_cases import importing
from jobs.use_cases.importing import ImportRefusedError

#: Jobs of a transaction, and bytes of their lines: nobody else can write to SQLite meanwhile, and all of them are in
#: memory. The last line may exceed the bytes.
BATCH, BATCH_BYTES = 100, 1 << 24
#: Bytes of a line. A history may have 11 stages, each with a prompt of a whole context.
MAX_LINE = 1 << 26

__all__ = ["ImportRefusedError", "Line", "Report", "import_file", "read_histories"]


@dataclass(frozen=True)
class Line:
    """A history in a file."""

    number: int
    #: In bytes.
    length: int
    history: dict[str, Any]
    #: None if the job had no entry in a log when it was exported.
    checked: Checked | None


@dataclass
class Report:
    """What became of the lines of a file."""

    imported: int = 0
    #: Those that were there already.
    present: int = 0
    #: Those that had not ended, or had no entry in their log yet.
    left_out: int = 0
    #: The logs where the jobs ended.
    logs: set[str] = field(default_factory=set)


def read_histories(file: IO[bytes], trusted: Sequence[Verifier]) -> Iterator[Line]:
    """Yield the histories of a file, each of them checked.

    Args:
        file: JSON Lines, perhaps compressed with gzip or zstd.
        trusted: the keys that may have signed; see `jobs.tlog.exported.check`.

    Raises:
        ImportRefusedError: a line is no history, or not the one that was recorded.
        BrokenFileError: the file is not whole.
    """
    pieces = decompressed(file)
    lines = read_lines(lambda _: next(pieces, b""), 0, max_length=MAX_LINE)
    for number, line in enumerate(lines, 1):
        if line.text is None:
            raise ImportRefusedError(number, f"it is longer than {MAX_LINE >> 20} MiB")
        if not line.text.strip():
            continue
        try:
            history = loads(line.text, unique_names=True)
        except RepeatedNameError as error:
            raise ImportRefusedError(number, str(error)) from error
        except (ValueError, RecursionError) as error:
            raise ImportRefusedError(
                number, f"it is not JSON ({error}): give an export as JSON Lines"
            ) from error
        if not isinstance(history, dict) or not {"id", "attempts", "log"} <= history.keys():
            raise ImportRefusedError(number, "it is not a history: export with `--shape history`")
        try:
            checked = None
            if history["log"] is not None or history.get("status") not in tuple(OPEN):
                checked = _check(history, trusted)
        except HistoryError as error:
            raise ImportRefusedError(number, f"the history of {history['id']}: {error}") from error
        yield Line(number, line.length, history, checked)


def _check(history: dict[str, Any], trusted: Sequence[Verifier]) -> Checked | None:
    if history["log"] is None and history.get("digest") is None and history.get("proof") is None:
        return None  # Exported within the second before it was sealed.
    return exported.check(history, trusted)


def import_file(
    open_file: Callable[[], IO[bytes]],
    database: Database,
    trusted: Sequence[Verifier],
    *,
    check_first: bool,
) -> Report:
    """Import the histories of a file.

    Args:
        open_file: opens the file.
        database: gets the jobs.
        trusted: the keys that may have signed the proofs.
        check_first: read the whole file first, and import nothing if a line is refused. If not, as for a file
            that can be read only once, the batches before the one with the refused line are imported.

    Raises:
        ImportRefusedError: a line is refused.
        BrokenFileError: the file is not whole.
    """
    if check_first:
        with open_file() as file:
            for batch in _batches(file, trusted, Report()):
                importing.check(database, batch, disagreement)
    report = Report()
    with open_file() as file:
        for batch in _batches(file, trusted, report):
            added = importing.add(database, batch, disagreement)
            report.imported += added
            report.present += len(batch) - added
    return report


def _batches(
    file: IO[bytes], trusted: Sequence[Verifier], report: Report
) -> Iterator[dict[int, Job]]:
    batch: dict[int, Job] = {}
    size = 0
    for line in read_histories(file, trusted):
        if line.checked is None:
            report.left_out += 1
            continue
        try:
            job = restore(line.history, line.checked)
        except HistoryError as error:
            reason = f"the history of {line.history['id']}: {error}"
            raise ImportRefusedError(line.number, reason) from error
        batch[line.number] = job
        size += line.length
        report.logs.add(line.checked.origin.log)
        if len(batch) == BATCH or size >= BATCH_BYTES:
            yield batch
            batch = {}
            if size >= BATCH_BYTES:
                # Jobs and their attempts refer to each other: they stay until these are looked for.
                gc.collect()
            size = 0
    if batch:
        yield batch
