"""Recording which lines of a batch are valid, a piece of its input at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from jobs.database import Database
from jobs.database_clock import utcnow
from jobs.ids import new_id
from jobs.models import BatchStatus, FilePurpose, FileState
from jobs.statements import batches, files
from jobs.transient import retry_on_conflict
from jobs.use_cases.batch_work import end

#: The maximum number of errors of a validation, which ends there.
MAX_ERRORS = 100


@dataclass(frozen=True)
class ValidatedLine:
    """A line of an input file that has a custom id."""

    number: int
    custom_id: str
    start: int
    length: int


@dataclass(frozen=True)
class Piece:
    """Some consecutive lines of an input file, validated."""

    #: Where the piece begins and ends, in bytes.
    start: int
    end: int
    #: The number of its last line.
    last_line: int
    lines: list[ValidatedLine]
    #: ``code``, ``line``, ``message`` and ``param`` each.
    errors: list[dict[str, Any]]
    #: Whether it is the last piece that needs to be validated.
    last: bool


@retry_on_conflict
def record_piece(
    database: Database, batch_id: str, runner: str, piece: Piece
) -> BatchStatus | None:
    """Record a validated piece of a batch's input. After the last one, the batch is in progress or failed.

    Returns:
        the batch's status; None if nothing was recorded, because it was cancelled or another process has
        validated the same piece.
    """
    with database.write() as connection:
        batch = batches.take(connection, batch_id, runner)
        if (
            batch is None
            or batch.status is not BatchStatus.VALIDATING
            or batch.validated_bytes != piece.start
        ):
            return None
        lines, duplicates = _distinct(connection, batch_id, piece.lines)
        batches.add_lines(
            connection,
            [
                {
                    "batch_id": batch_id,
                    "number": line.number,
                    "custom_id": line.custom_id,
                    "start": line.start,
                    "length": line.length,
                }
                for line in lines
            ],
        )
        errors = [*batch.errors, *sorted([*piece.errors, *duplicates], key=_line_number)]
        total = batch.total + len(lines)
        last = piece.last or len(errors) >= MAX_ERRORS
        if last and not total and not errors:
            errors = [line_error("empty_file", None, "The input file has no requests.")]
        if last and errors:
            batches.remove_lines(connection, batch_id)
            end(connection, batch, BatchStatus.FAILED, errors=errors[:MAX_ERRORS], total=0)
            return BatchStatus.FAILED
        values: dict[str, Any] = {
            "validated_bytes": piece.end,
            "validated_lines": piece.last_line,
            "errors": errors,
            "total": total,
        }
        if last:
            values |= _begin(connection, batch)
        batches.update(connection, batch_id, **values)
        return BatchStatus.IN_PROGRESS if last else BatchStatus.VALIDATING


def _begin(connection: sa.Connection, batch: sa.Row[*tuple[Any, ...]]) -> dict[str, Any]:
    """Make the files of a batch that is valid; return the columns that change."""
    ids = {}
    for column, kind in (("output_file_id", "output"), ("error_file_id", "error")):
        ids[column] = new_id("file-")
        files.add(
            connection,
            ids[column],
            batch.owner,
            f"{batch.id}_{kind}.jsonl",
            FilePurpose.BATCH_OUTPUT,
            FileState.WRITING,
        )
    return {**ids, "status": BatchStatus.IN_PROGRESS, "in_progress_at": utcnow()}


def _distinct(
    connection: sa.Connection, batch_id: str, lines: Sequence[ValidatedLine]
) -> tuple[list[ValidatedLine], list[dict[str, Any]]]:
    """Return the lines whose custom ids are new, and errors for the others."""
    known = batches.known_custom_ids(connection, batch_id, [line.custom_id for line in lines])
    distinct, errors = [], []
    for line in lines:
        if line.custom_id in known:
            message = f"Another line has the same `custom_id`: {line.custom_id!r}."
            errors.append(line_error("duplicate_custom_id", line.number, message, "custom_id"))
        else:
            known.add(line.custom_id)
            distinct.append(line)
    return distinct, errors


def line_error(
    code: str, line: int | None, message: str, param: str | None = None
) -> dict[str, Any]:
    """Return an error of a batch, as it is stored.

    Args:
        code: what is wrong, for programs.
        line: its number; None for the file as a whole.
        message: what is wrong, for people.
        param: the field that is wrong, if it is one.
    """
    return {"code": code, "line": line, "message": message, "param": param}


def _line_number(error: dict[str, Any]) -> int:
    number: int = error["line"] or 0
    return number
